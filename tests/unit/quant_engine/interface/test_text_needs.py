"""A text that is too short is answered with numbers that a request may ask for, or with none."""

import pytest
from pydantic import ValidationError

from quant_engine.interface.text_needs import calibration_remedy, evaluation_remedy
from quant_engine.policy import Calibration, Perplexity


@pytest.mark.parametrize(
    ("tokens", "length", "told"),
    [
        (12_800, 128, "at most 100 samples"),
        (4 * 128, 128, "at most 4 samples"),
        (4 * 128 - 1, 128, "4 samples with a calibration.sequence_length of at most 127"),
        (32, 128, "of at most 8"),
        (31, 128, "Give more text"),
        (0, 128, "Give more text"),
    ],
)
def test_a_calibration_is_never_told_to_ask_for_what_is_refused(tokens: int, length: int, told: str) -> None:
    assert told in calibration_remedy(tokens, length)
    assert "at most 0" not in calibration_remedy(tokens, length)


def test_an_evaluation_is_never_told_to_ask_for_what_is_refused() -> None:
    assert "at most 500" in evaluation_remedy(500)
    assert "at most 32" in evaluation_remedy(32)
    assert "at most" not in evaluation_remedy(31)


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
