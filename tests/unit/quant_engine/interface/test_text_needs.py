"""A text that is too short is answered with numbers that a request may ask for, or with none."""

import pytest
from pydantic import ValidationError

from quant_engine.interface.text_needs import calibration_remedy, evaluation_remedy
from quant_engine.policy import Calibration, Perplexity


@pytest.mark.parametrize(
    ("available", "tokens", "told"),
    [
        (100, 12_800, "at most 100 samples"),
        (4, 4 * 128, "at most 4 samples"),
        (3, 4 * 128 - 1, "10 samples with a calibration.sequence_length of at most 51"),
        (0, 79, "4 samples with a calibration.sequence_length of at most 19"),
        (0, 32, "4 samples with a calibration.sequence_length of at most 8"),
        (0, 31, "Give a text of at least 1,280 tokens"),
        (0, 0, "Give a text of at least 1,280 tokens"),
    ],
)
def test_a_calibration_is_never_told_to_ask_for_what_is_refused(available: int, tokens: int, told: str) -> None:
    remedy = calibration_remedy(available, tokens, samples=10, sequence_length=128)
    assert told in remedy
    assert "at most 0" not in remedy


def test_an_evaluation_is_never_told_to_ask_for_what_is_refused() -> None:
    assert "at most 500" in evaluation_remedy(500, 4096)
    assert "at most 32" in evaluation_remedy(32, 4096)
    assert "at most" not in evaluation_remedy(31, 4096)


def test_the_smallest_requests_are_those_that_the_remedies_name() -> None:
    Calibration(samples=4, sequence_length=8)
    Perplexity(tokens=32)
    for kind, fields in (
        (Calibration, {"samples": 3}),
        (Calibration, {"sequence_length": 7}),
        (Perplexity, {"tokens": 31}),
    ):
        with pytest.raises(ValidationError):
            kind.model_validate(fields)
