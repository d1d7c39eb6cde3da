"""Data sets by name."""

from pathlib import Path

import pytest

from quant_engine.calibration import Purpose, dataset_names, dataset_text
from quant_engine.errors import DatasetNotFound
from quant_engine.policy import InlineTexts

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
