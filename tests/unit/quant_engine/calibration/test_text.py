"""Data sets by name, and windows of tokens by seed."""

from pathlib import Path

import pytest
import torch

from quant_engine.calibration import (
    Purpose,
    calibration_windows,
    dataset_names,
    dataset_text,
    evaluation_windows,
    load_tokenizer,
    token_ids,
)
from quant_engine.errors import DatasetNotFound, ModelNotFound, NotEnoughText
from quant_engine.policy import InlineTexts
from tests.tiny_models import write_tiny_model

MUCH = 10_000_000


def test_pydoc_is_split_in_two_halves_that_share_nothing() -> None:
    calibration = dataset_text("pydoc", Purpose.CALIBRATION, None, max_characters=MUCH)
    evaluation = dataset_text("pydoc", Purpose.EVALUATION, None, max_characters=MUCH)
    assert abs(len(calibration) - len(evaluation)) <= 1
    assert len(calibration) > 200_000
    assert calibration[:200] != evaluation[:200]


def test_a_directory_gives_train_and_valid_for_calibration_and_test_for_evaluation(tmp_path: Path) -> None:
    for name in ("train-b", "train-a", "valid", "test"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{name}.txt").write_text(name)
    assert dataset_text("mine", Purpose.CALIBRATION, tmp_path, max_characters=MUCH) == "train-a\n\ntrain-b\n\nvalid"
    assert dataset_text("mine", Purpose.EVALUATION, tmp_path, max_characters=MUCH) == "test"
    assert dataset_text("mine", Purpose.CALIBRATION, tmp_path, max_characters=9) == "train-a\n\ntr"
    assert dataset_names(tmp_path) == ["pydoc", "self", "mine"]


@pytest.mark.parametrize("name", ["absent", "..", "../secret"])
def test_an_unknown_name_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound) as caught:
        dataset_text(name, Purpose.CALIBRATION, tmp_path / "sets", max_characters=MUCH)
    assert "pydoc, self" in caught.value.hint


def test_a_directory_without_text_for_the_purpose_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.txt").write_text("x")
    with pytest.raises(DatasetNotFound, match="no text for evaluation"):
        dataset_text("mine", Purpose.EVALUATION, tmp_path, max_characters=MUCH)


def test_inline_texts_are_joined() -> None:
    assert dataset_text(InlineTexts(texts=("a", "b")), Purpose.CALIBRATION, None, max_characters=MUCH) == "a\n\nb"


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
