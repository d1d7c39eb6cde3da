"""A large file of a tokenizer is parsed elsewhere, and once."""

import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from quant_engine.errors import EngineError
from quant_engine.model_files import ModelFiles
from quant_engine.preflight import programs
from quant_engine.preflight.tokenizer_files import tokenizer_problems
from tests.sound_model import write_sound_model

MEBIBYTE = 2**20
LARGE = {"model": {"vocab": {}, "merges": [["a" * 10, "b" * 10]] * (MEBIBYTE // 16)}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_sound_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SECONDS", 60.0)


def found(model: Path) -> list[EngineError]:
    return list(tokenizer_problems(ModelFiles(model)))


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "tokenizer.json is not JSON."),
        ("[]", "tokenizer.json is not a JSON object."),
        ('{"a":' * 65 + "1" + "}" * 65, "tokenizer.json has objects and lists more than 64 levels deep."),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "tokenizer.json has objects and lists more than 64 levels deep."),
        ('{"a":' * 64 + "1" + "}" * 64, None),
    ],
)
def test_what_is_wrong_is_told_alike_for_files_of_any_size(
    content: str, told: str | None, *, large: bool, model: Path
) -> None:
    (model / "tokenizer.json").write_text(content + " " * MEBIBYTE if large else content)
    problems = found(model)
    assert [each.detail for each in problems] == ([] if told is None else [f"The model's {told}"])
    assert {each.code for each in problems} <= {"invalid_model"}


def test_a_large_file_costs_this_process_neither_time_nor_memory(model: Path) -> None:
    (model / "tokenizer.json").write_text(json.dumps(LARGE)[:-1] + ', "x": [' + "[]," * MEBIBYTE + "[]]}")
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert found(model) == []
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 0.1
    assert after.ru_maxrss - before.ru_maxrss < 20_000


def test_the_same_file_is_parsed_once_and_a_changed_one_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "tokenizer.json").write_text(json.dumps(LARGE))
    assert found(model) == []
    with monkeypatch.context() as patch:
        patch.setattr(programs, "SECONDS", 0.0)
        assert found(model) == []
    (model / "tokenizer.json").write_text("[" + " " * MEBIBYTE + "]")
    assert [each.detail for each in found(model)] == ["The model's tokenizer.json is not a JSON object."]


def test_a_file_that_takes_too_long_is_left_to_the_run_and_asked_about_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "tokenizer.json").write_text("{" + " " * MEBIBYTE)
    with monkeypatch.context() as patch:
        patch.setattr(programs, "SECONDS", 0.0)
        assert found(model) == []
    assert [each.detail for each in found(model)] == ["The model's tokenizer.json is not JSON."]


def test_few_programs_run_at_a_time(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys, time\nmark = pathlib.Path(sys.argv[1]) / str(os.getpid())\nmark.touch()\n"
        "print(len(os.listdir(sys.argv[1])))\ntime.sleep(0.2)\nmark.unlink()\n"
    )
    (tmp_path / "running").mkdir()
    counts: list[Any] = []

    def run() -> None:
        done = programs.run_program(program, str(tmp_path / "running"))
        counts.append(None if done is None else int(done.stdout))

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each for each in counts if each is not None} <= {1, 2}
