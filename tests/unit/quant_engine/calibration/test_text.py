"""Windows of tokens by seed."""

from pathlib import Path

import pytest
import torch

from quant_engine.calibration import (
    calibration_windows,
    evaluation_windows,
    load_tokenizer,
    token_ids,
)
from quant_engine.errors import ModelNotFound, NotEnoughText
from tests.tiny_models import write_tiny_model


def test_windows_are_disjoint_seeded_and_drawn_from_everywhere() -> None:
    ids = torch.arange(1000)
    windows = calibration_windows(ids, samples=20, sequence_length=10, seed=5)
    assert windows.shape == (20, 10)
    assert len(windows.flatten().unique()) == 200
    assert int(windows.max()) > 700
    assert torch.equal(windows, calibration_windows(ids, samples=20, sequence_length=10, seed=5))
    assert not torch.equal(windows, calibration_windows(ids, samples=20, sequence_length=10, seed=6))


def test_too_little_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(NotEnoughText, match=r"101 × 10 = 1,010 tokens; the text has 1,000") as caught:
        calibration_windows(torch.arange(1000), samples=101, sequence_length=10, seed=0)
    assert "at most 100 samples" in caught.value.hint
    with pytest.raises(NotEnoughText, match=r"asks for 1,001 tokens; the evaluation text has 1,000"):
        evaluation_windows(torch.arange(1000), tokens=1001, sequence_length=10)


def test_evaluation_takes_the_first_tokens_in_order_and_the_rest_as_a_window() -> None:
    windows = evaluation_windows(torch.arange(1000), tokens=25, sequence_length=10)
    assert [part.shape for part in windows] == [(2, 10), (1, 5)]
    assert torch.cat([part.flatten() for part in windows]).tolist() == list(range(25))
    assert [part.shape for part in evaluation_windows(torch.arange(40), tokens=21, sequence_length=10)] == [(2, 10)]
    assert [part.shape for part in evaluation_windows(torch.arange(40), tokens=8, sequence_length=10)] == [(1, 8)]


def test_the_tokenizer_comes_from_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_model(tmp_path / "model"))
    assert tokenizer.decode(token_ids(tokenizer, "a class of its own")) == "a class of its own"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="no usable tokenizer"):
        load_tokenizer(tmp_path / "empty")
