"""Which files of a repository a configuration and a split are."""

import time
from typing import Any

import pytest

from quant_engine.interface.datasets import Purpose
from worker.download.dataset_files import NoSuchFiles, Wanted, choose_files, file_name

CALIBRATION, EVALUATION = Purpose.CALIBRATION, Purpose.EVALUATION
WIKITEXT = [
    "README.md",
    ".gitattributes",
    *(f"wikitext-{size}-raw-v1/{split}-00000-of-00001.parquet" for size in (2, 103) for split in ("test", "train")),
]
WIKITEXT_CARD = [
    {
        "config_name": f"wikitext-{size}-raw-v1",
        "data_files": [
            {"split": split, "path": f"wikitext-{size}-raw-v1/{split}-*"} for split in ("test", "train", "validation")
        ],
    }
    for size in (103, 2)
]
C4 = [
    f"{folder}/c4-{split}.{n:05}.json.gz"
    for folder in ("en", "de")
    for split in ("train", "validation")
    for n in (1, 0)
]
C4_CARD = [
    {
        "config_name": "en",
        "data_files": [
            {"split": "train", "path": "en/c4-train.*.json.gz"},
            {"split": "validation", "path": ["en/c4-validation.*.json.gz"]},
        ],
    }
]


def choose(
    names: list[str],
    configs: object = None,
    config: str | None = None,
    split: str | None = None,
    purpose: Purpose = CALIBRATION,
) -> list[str]:
    return choose_files(names, configs, Wanted(config, split, purpose))


def test_wikitext_and_c4_as_the_hub_has_them() -> None:
    config = "wikitext-2-raw-v1"
    assert choose(WIKITEXT, WIKITEXT_CARD, config) == [f"{config}/train-00000-of-00001.parquet"]
    assert choose(WIKITEXT, WIKITEXT_CARD, config, purpose=EVALUATION) == [f"{config}/test-00000-of-00001.parquet"]
    assert choose(C4, C4_CARD, "en") == ["en/c4-train.00000.json.gz", "en/c4-train.00001.json.gz"]
    assert choose(C4, C4_CARD, "en", purpose=EVALUATION) == [
        "en/c4-validation.00000.json.gz",
        "en/c4-validation.00001.json.gz",
    ]


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"config_name": "default", "data_files": "a/*.jsonl"}], ["a/1.jsonl"]),
        ([{"config_name": "one", "data_files": ["a/*.jsonl", "b/**"]}], ["a/1.jsonl", "b/c/2.jsonl"]),
        ([{"config_name": "one", "data_dir": "b", "data_files": "**/*.jsonl"}], ["b/c/2.jsonl"]),
        ([{"config_name": "one", "data_files": {"train": "./a/1.jsonl"}}], ["a/1.jsonl"]),
        (
            [
                {"config_name": "one", "data_files": "a/*"},
                {"config_name": "two", "data_files": "b/*/*", "default": True},
            ],
            ["b/c/2.jsonl"],
        ),
    ],
)
def test_every_way_to_write_a_card(configs: object, expected: list[str]) -> None:
    assert choose(["a/1.jsonl", "b/c/2.jsonl"], configs) == expected


@pytest.mark.parametrize("configs", [None, [], "en", [1], [{}], {"a": 1}, [{"config_name": "x"}]])
def test_without_a_card_the_names_decide(configs: object) -> None:
    names = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "data/train.jsonl"]
    assert choose(names, configs) == names[:1]
    assert choose(names, configs, purpose=EVALUATION) == names[1:2]


@pytest.mark.parametrize(
    ("names", "split", "calibration", "evaluation"),
    [
        (["train.jsonl", "dev.jsonl"], None, ["train.jsonl"], ["dev.jsonl"]),
        (["my-texts.jsonl", "README.txt"], None, ["my-texts.jsonl"], None),
        (["corpus.json", "dataset_infos.json"], None, ["corpus.json"], None),
        (["test/train.jsonl"], None, ["test/train.jsonl"], None),
        (["data/train_sft-0.parquet", "data/test_sft-0.parquet"], "test_sft", ["data/test_sft-0.parquet"], ...),
        (["Training.txt", "Evaluation.txt"], None, ["Training.txt"], ["Evaluation.txt"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], None, ["default/train/0000.parquet"], ...),
    ],
)
def test_splits_by_names(names: list[str], split: str | None, calibration: list[str], evaluation: Any) -> None:
    assert choose(names, split=split) == calibration
    if evaluation is None:
        with pytest.raises(NoSuchFiles, match=r"for evaluation \(test or validation\)") as refused:
            choose(names, split=split, purpose=EVALUATION)
        assert "train" in refused.value.hint
    elif evaluation is not ...:
        assert choose(names, split=split, purpose=EVALUATION) == evaluation


def test_the_hubs_own_conversion_has_configurations_as_folders() -> None:
    names = [f"wikitext-{size}-raw-v1/{split}/0000.parquet" for size in (2, 103) for split in ("train", "test")]
    for card in (None, WIKITEXT_CARD):
        assert choose(names, card, "wikitext-2-raw-v1") == ["wikitext-2-raw-v1/train/0000.parquet"]


@pytest.mark.parametrize(
    ("names", "configs", "config", "split", "detail", "hint"),
    [
        (WIKITEXT, WIKITEXT_CARD, None, None, "several configurations", "wikitext-103-raw-v1, wikitext-2-raw-v1"),
        (WIKITEXT, WIKITEXT_CARD, "wikitext2", None, "no configuration of this name", "wikitext-2-raw-v1"),
        (WIKITEXT, WIKITEXT_CARD, "wikitext-2-raw-v1", "dev", "no split of this name", "test, train, validation"),
        (["train.jsonl"], None, "en", None, "no configuration of this name", "Leave config out"),
        (["alpha.jsonl", "test.jsonl"], None, None, None, "no split for calibration (train)", "test"),
        (["test.jsonl"], None, None, "other", "text files of this split", "refs/convert/parquet"),
        (["train.csv", "train.zip"], None, None, None, "no Parquet, JSON Lines or text files", "refs/convert/parquet"),
        ([".train.jsonl", "a/.b/train.jsonl"], None, None, None, "no Parquet", "refs/convert/parquet"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    names: list[str], configs: object, config: str | None, split: str | None, detail: str, hint: str
) -> None:
    with pytest.raises(NoSuchFiles) as refused:
        choose(names, configs, config, split)
    assert detail in refused.value.detail
    assert hint in refused.value.hint


def test_a_hostile_pattern_costs_no_more_than_another() -> None:
    names = ["/".join("a" * 100) + "/train.txt", "a" * 200 + ".txt"]
    began = time.process_time()
    for pattern in ("**/a/" * 60 + "b", "*a" * 100 + "b", "**/" * 500 + "*"):
        try:
            choose(names, [{"data_files": pattern}])
        except NoSuchFiles:
            continue
    assert time.process_time() - began < 1.0


def test_no_two_files_have_the_same_name_here() -> None:
    assert len({file_name(path) for path in ("a/b.txt", "a%2Fb.txt", "a-b.txt")}) == 3
    assert "/" not in file_name("../a/b.txt")
