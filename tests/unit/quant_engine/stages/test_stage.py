"""A stage's directory is whole or absent, reused when nothing changed, and taken up where a kill left it."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant_engine.atomic_write import atomic_write
from quant_engine.errors import DiskFull
from quant_engine.interface.stages import UnknownStage
from quant_engine.resume_state import StateFile
from quant_engine.stages.stage import Stage, StageProgress, read_json, run_stage, stage_digest, write_json
from tests.integration.quant_engine.helpers import RecordingObserver


def _stage(produce: Callable[[Path, StageProgress], None], *, resumable: bool = False, **inputs: Any) -> Stage:
    return Stage(name="export", unit="part", total=3, inputs=inputs, produce=produce, resumable=resumable)


class _Parts:
    """Writes three parts, one file each, and dies before the part it is told to."""

    def __init__(self, dies_before: int | None = None) -> None:
        self.dies_before = dies_before
        self.written: list[int] = []

    def __call__(self, directory: Path, progress: StageProgress) -> None:
        for part in range(3):
            if part == self.dies_before:
                (directory / f"{part}.json.tmp").write_text("half")
                raise KeyboardInterrupt
            if not (directory / f"{part}.json").exists():
                write_json(directory / f"{part}.json", part)
                self.written.append(part)
            progress.advance()


def test_a_finished_stage_is_reused_and_says_so(tmp_path: Path) -> None:
    first, second = _Parts(), _Parts()
    observer = RecordingObserver()
    directory = run_stage(_stage(first, a=1), tmp_path, observer)
    digest = stage_digest(directory)
    assert run_stage(_stage(second, a=1), tmp_path, observer) == directory
    assert (first.written, second.written) == ([0, 1, 2], [])
    assert stage_digest(directory) == digest
    assert [event for event in observer.events if event[0] == "finished"] == [
        ("finished", "export", False),
        ("finished", "export", True),
    ]


@pytest.mark.parametrize("spoil", ["inputs", "content", "removal", "manifest"])
def test_a_stage_that_does_not_match_its_manifest_is_done_again(spoil: str, tmp_path: Path) -> None:
    directory = run_stage(_stage(_Parts(), a=1), tmp_path, RecordingObserver())
    if spoil == "content":
        (directory / "1.json").write_text("7")
    elif spoil == "removal":
        (directory / "1.json").unlink()
    elif spoil == "manifest":
        (directory / "manifest.json").write_text("{")
    again = _Parts()
    run_stage(_stage(again, a=2 if spoil == "inputs" else 1), tmp_path, RecordingObserver())
    assert again.written == [0, 1, 2]
    assert (directory / "1.json").read_text() == "1\n"


def test_a_killed_stage_is_absent_and_resumes_file_by_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(_stage(_Parts(dies_before=2), resumable=True), tmp_path, RecordingObserver())
    assert not (tmp_path / "export").exists()
    resumed = _Parts()
    directory = run_stage(_stage(resumed, resumable=True), tmp_path, RecordingObserver())
    assert resumed.written == [2]
    assert not list(directory.glob("*.tmp"))
    assert not (tmp_path / "export.partial").exists()


@pytest.mark.parametrize(("resumable", "value"), [(False, 1), (True, 2)])
def test_a_partial_stage_is_dropped_when_it_can_not_be_taken_up(resumable: bool, value: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(_stage(_Parts(dies_before=2), resumable=True, a=1), tmp_path, RecordingObserver())
    again = _Parts()
    run_stage(_stage(again, resumable=resumable, a=value), tmp_path, RecordingObserver())
    assert again.written == [0, 1, 2]


def test_states_end_with_their_stage(tmp_path: Path) -> None:
    def produce(directory: Path, _progress: StageProgress) -> None:
        StateFile(directory).keep(3, {})
        write_json(directory / "0.json", 0)

    directory = run_stage(_stage(produce, resumable=True), tmp_path, RecordingObserver())
    assert [*read_json(directory / "manifest.json")["outputs"]] == ["0.json"]
    assert not list(directory.glob("*.state"))


def test_a_stage_killed_behind_its_manifest_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a state that was not removed yet, and whatever else may come of it: nothing is written again."""
    told: list[Path] = []

    def killed(_path: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage(_stage(_Parts(), a=1), tmp_path, RecordingObserver())
    StateFile(tmp_path / "export.partial").keep(3, {})
    again, observer = _Parts(), RecordingObserver()
    directory = run_stage(replace(_stage(again, a=1), retell=told.append), tmp_path, observer)
    assert (again.written, told) == ([], [directory])
    assert ("finished", "export", True) in observer.events
    assert sorted(path.name for path in directory.glob("*.*")) == [
        "0.json",
        "1.json",
        "2.json",
        "manifest.json",
        "taken-up.digest",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_becomes_a_problem_with_a_remedy(number: int, tmp_path: Path) -> None:
    def produce(_directory: Path, _progress: StageProgress) -> None:
        raise OSError(number, "full")

    with pytest.raises(DiskFull) as caught:
        run_stage(_stage(produce), tmp_path, RecordingObserver())
    assert "stage export" in caught.value.detail
    assert "Free some space" in caught.value.hint


def test_a_really_full_device_is_seen(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""

    def produce(directory: Path, _progress: StageProgress) -> None:
        (directory / "link").symlink_to("/dev/full")
        with (directory / "link").open("w") as file:
            file.write("x")

    with pytest.raises(DiskFull):
        run_stage(_stage(produce), tmp_path, RecordingObserver())


def test_other_errors_pass_through(tmp_path: Path) -> None:
    def produce(_directory: Path, _progress: StageProgress) -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        run_stage(_stage(produce), tmp_path, RecordingObserver())


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("name", "unit", "known"), [("polish", "part", "load, calibrate"), ("export", "step", "part")])
def test_a_stage_that_the_list_does_not_have_can_not_be_made(name: str, unit: str, known: str) -> None:
    with pytest.raises(UnknownStage, match=known):
        Stage(name=name, unit=unit, total=1, inputs={}, produce=_Parts())
