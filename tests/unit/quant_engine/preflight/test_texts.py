"""A text that is too short, or that the model has no embedding for, is told before anything is computed."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from quant_engine.interface.datasets import Purpose, built_in_text
from quant_engine.interface.layout import model_layout
from quant_engine.interface.problems import Problem
from quant_engine.model_files import ModelFiles
from quant_engine.policy import Calibration, Evaluation
from quant_engine.preflight import programs, texts
from quant_engine.preflight.texts import text_problems
from tests.sound_model import CONFIG, write_sound_model
from tests.tiny_models import panicking_tokenizer, tiny_tokenizer, tokenizer_with, write_tiny_model

WORDS = "the quick brown fox "


def problems(
    model: Path,
    calibration: dict[str, Any] | None = None,
    perplexity: dict[str, Any] | None = None,
    *,
    datasets: Path | None = None,
    vocabulary: int = 512,
) -> list[Problem]:
    return list(
        text_problems(
            ModelFiles(model),
            model_layout(CONFIG | {"vocab_size": vocabulary}),
            None if calibration is None else Calibration.model_validate(calibration),
            Evaluation.model_validate({"perplexity": perplexity}),
            datasets,
        )
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_sound_model(tmp_path / "model", vocab_size=512)
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_short_texts_of_a_request_are_told_with_both_numbers_and_what_would_fit(model: Path) -> None:
    short = {"texts": ["Only a few words."]}
    first, second = problems(model, {"dataset": short}, {"dataset": short, "tokens": 4096})
    count = len(tiny_tokenizer()("Only a few words.")["input_ids"])
    assert (first.pointer, first.code) == ("/calibration/dataset", "not_enough_text")
    assert f"256 × 128 = 32,768 tokens; the text has {count}" in first.detail
    assert (second.pointer, second.code) == ("/evaluation/perplexity/dataset", "not_enough_text")
    assert "asks for 4,096 tokens" in second.detail
    assert all("at most 0" not in each.hint for each in (first, second))


@pytest.mark.parametrize("special_tokens", ["auto", "none"])
@pytest.mark.parametrize("beginning", ["", "<s>"])
def test_enough_is_enough(special_tokens: str, beginning: str, model: Path) -> None:
    if beginning:
        tokenizer_with(tiny_tokenizer().convert_ids_to_tokens([0])[0]).save_pretrained(model)
    text = {"texts": [WORDS * 40] * 8}
    tokens = sum(len(tiny_tokenizer()(each)["input_ids"]) for each in text["texts"])
    fits = {"dataset": text, "special_tokens": special_tokens, "samples": tokens // 20, "sequence_length": 16}
    assert problems(model, fits, {"dataset": text, "tokens": tokens - 8, "special_tokens": special_tokens}) == []
    twice = fits | {"samples": 2 * tokens // 16}
    assert [each.pointer for each in problems(model, twice)] == ["/calibration/dataset"]


def test_what_a_remedy_names_is_what_the_text_has(model: Path) -> None:
    text = {"texts": [WORDS * 100]}
    tokens = len(tiny_tokenizer()(text["texts"][0])["input_ids"])
    few = {"dataset": text, "samples": tokens // 8 + 40, "sequence_length": 8}
    first, second = problems(model, few, {"dataset": text, "tokens": tokens * 2})
    assert f"the text has {tokens:,}." in first.detail
    assert f"at most {tokens // 8:,} samples" in first.hint
    assert f"the evaluation text has {tokens:,}." in second.detail
    assert f"at most {tokens}, " in second.hint


def test_a_window_without_room_for_text_is_told(model: Path) -> None:
    tokenizer_with(" ".join(["<s>"] * 9)).save_pretrained(model)
    asked = {"dataset": {"texts": [WORDS * 100]}, "samples": 4, "sequence_length": 8}
    first, second = problems(model, asked, {"dataset": asked["dataset"], "tokens": 64, "sequence_length": 9})
    assert (first.pointer, second.pointer) == ("/calibration/sequence_length", "/evaluation/perplexity/sequence_length")
    assert "begins a text with 9 special tokens; a window has 8 tokens" in first.detail
    assert problems(model, asked | {"special_tokens": "none"}) == []


@pytest.mark.parametrize(
    "dataset",
    [{"texts": [WORDS * 40] * 5}, {"messages": [[{"role": "user", "content": WORDS}]] * 5}],
)
def test_documents_that_are_too_few_are_told_without_reading_them(dataset: dict[str, Any], model: Path) -> None:
    asked = {"dataset": dataset, "samples": 6, "sequence_length": 8, "pack": False}
    (found,) = problems(model, asked)
    assert (found.pointer, found.code) == ("/calibration/dataset", "not_enough_text")
    assert "asks for 6 documents" in found.detail
    assert "at most 5 samples" in found.hint
    assert problems(model, asked | {"samples": 5}) == []


def test_a_token_beyond_the_embedding_is_named(model: Path) -> None:
    tokenizer = tiny_tokenizer()
    text = {"texts": [WORDS * 200]}
    largest = max(tokenizer(text["texts"][0])["input_ids"])
    (found,) = problems(model, {"dataset": text, "samples": 4, "sequence_length": 8}, vocabulary=largest)
    assert (found.pointer, found.code) == ("/model/id", "invalid_model")
    assert tokenizer.convert_ids_to_tokens(largest) in found.detail
    assert str(largest) in found.detail


def test_a_tokenizer_that_panics_is_the_models_fault(model: Path) -> None:
    (model / "tokenizer.json").write_text(json.dumps(panicking_tokenizer()))
    (found,) = problems(model, {"dataset": {"texts": [WORDS]}})
    assert (found.pointer, found.code) == ("/model/id", "invalid_model")


def test_a_tokenizer_that_takes_too_long_is_left_to_the_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SECONDS", 0.001)
    began = time.monotonic()
    assert problems(model, {"dataset": {"texts": [WORDS * 2000]}}) == []
    assert time.monotonic() - began < 5


def test_what_no_tokenizer_could_make_enough_is_told_without_one(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    short = {"texts": ["Only a few words."]}
    first, second = problems(model, {"dataset": short}, {"dataset": short, "tokens": 4096})
    assert "asks for 32,768 tokens; the text has only 17 bytes" in first.detail
    assert (second.pointer, second.code) == ("/evaluation/perplexity/dataset", "not_enough_text")
    assert problems(model, {"dataset": {"texts": [WORDS]}, "samples": 4, "sequence_length": 8}) == []


def test_named_texts_are_counted_where_they_may_be_too_short(model: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "tales").mkdir(parents=True)
    (tmp_path / "data" / "tales" / "train.txt").write_text(WORDS * 10)
    (tmp_path / "data" / "rows").mkdir()
    (tmp_path / "data" / "rows" / "train.jsonl").write_text('{"text": "a"}\n')
    data = tmp_path / "data"
    assert [each.pointer for each in problems(model, {"dataset": "tales"}, datasets=data)] == ["/calibration/dataset"]
    # Rows and what is not on this machine are counted in the run.
    assert problems(model, {"dataset": "rows"}, datasets=data) == []
    assert problems(model, {"dataset": "absent"}, datasets=data) == []
    assert problems(model, {"dataset": "self"}) == []
    built_in = built_in_text(Purpose.CALIBRATION)
    asked = {"dataset": "pydoc", "samples": len(built_in) // 8, "sequence_length": 16}
    assert [each.pointer for each in problems(model, asked)] == ["/calibration/dataset"]
    assert problems(model, {"dataset": "pydoc"}) == []


def test_the_counts_are_those_of_the_run(tmp_path: Path) -> None:
    # The program counts as transformers does, so that no job is refused that would have run.
    model = write_tiny_model(tmp_path / "model")
    text = built_in_text(Purpose.EVALUATION)[:20_000]
    tokens = len(tiny_tokenizer()(text, verbose=False)["input_ids"])
    answer = texts._answer(model / "tokenizer.json", [[text]])
    assert answer is not None
    assert answer["counts"] == [[tokens]]


def test_a_tokenizer_that_multiplies_a_text_may_not_take_the_memory(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    each = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "a" * 1000}
    content["normalizer"] = {"type": "Sequence", "normalizers": [each] * 4}
    (model / "tokenizer.json").write_text(json.dumps(content))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert problems(model, {"dataset": {"texts": [WORDS * 100]}, "samples": 8, "sequence_length": 32}) == []
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(before, 2 << 20)  # in KiB


def test_an_id_without_a_token_is_told_as_a_special_one(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    added = {"SpecialToken": {"id": "<x>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [added, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<x>": {"id": "<x>", "ids": [99_999], "tokens": ["<x>"]}},
    }
    (model / "tokenizer.json").write_text(json.dumps(content))
    (found,) = problems(model, {"dataset": {"texts": [WORDS]}})
    assert "gives a special token the id 99999" in found.detail
