"""A window beyond the positions of a model is refused with the limit."""

from typing import Any

import pytest

from quant_engine.errors import UnsupportedPolicy
from quant_engine.interface.positions import check_positions, position_limit
from quant_engine.policy import Calibration, Evaluation, Perplexity

FITS = Calibration(sequence_length=64)
NONE = Evaluation(perplexity=None)


def _measured(tokens: int, sequence_length: int) -> Evaluation:
    return Evaluation(perplexity=Perplexity(tokens=tokens, sequence_length=sequence_length))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": 4096, "sliding_window": 64, "rope_scaling": {"factor": 4.0}}, 4096),
        ({}, None),
        ({"max_position_embeddings": "64"}, None),
        ({"max_position_embeddings": None, "text_config": []}, None),
    ],
)
def test_the_limit_is_the_models_positions(config: dict[str, Any], limit: int | None) -> None:
    assert position_limit(config) == limit


@pytest.mark.parametrize(
    ("calibration", "evaluation", "field"),
    [
        (Calibration(sequence_length=65), NONE, "calibration.sequence_length"),
        (FITS, _measured(1024, 512), "evaluation.perplexity.sequence_length"),
        (None, _measured(1024, 65), "evaluation.perplexity.sequence_length"),
    ],
)
def test_a_window_beyond_it_is_refused(calibration: Calibration | None, evaluation: Evaluation, field: str) -> None:
    with pytest.raises(UnsupportedPolicy, match=r"positions for 64 tokens \(max_position_embeddings\)") as caught:
        check_positions({"max_position_embeddings": 64}, calibration, evaluation)
    assert caught.value.hint == f"Set {field} to at most 64."
    check_positions({}, calibration, evaluation)


def test_what_fits_passes_and_a_text_shorter_than_a_window_counts_as_it_is() -> None:
    check_positions({"max_position_embeddings": 64}, FITS, _measured(1024, 64))
    check_positions({"max_position_embeddings": 64}, FITS, _measured(64, 512))
    check_positions({"max_position_embeddings": 64}, None, NONE)
