"""Directories of attempts: handed on by a rename, gone when nobody needs them."""

from pathlib import Path

from quant_engine.interface.datasets import Purpose
from worker.attempts.workspace import Workspace, abandoned_jobs, discard, open_workspace, put_aside

JOB = "job_1"


def open_at(tmp_path: Path, fence: int) -> Workspace:
    return open_workspace(tmp_path / "work", JOB, fence)


def test_a_later_attempt_finds_the_stages_of_the_one_before(tmp_path: Path) -> None:
    first = open_at(tmp_path, 1)
    (first.stages / "calibrate").mkdir()
    (first.stages / "calibrate" / "manifest.json").write_text("{}")
    (first.scratch / "garbage").write_text("x")
    later = open_at(tmp_path, 4)
    assert (later.stages / "calibrate" / "manifest.json").read_text() == "{}"
    assert not any(later.scratch.iterdir())
    assert not first.root.exists()


def test_a_stale_attempt_can_not_write_beside_its_successor(tmp_path: Path) -> None:
    stale = open_at(tmp_path, 1)
    open_at(tmp_path, 2)
    try:
        (stale.stages / "late").write_text("x")
    except FileNotFoundError:
        return
    raise AssertionError("the stale attempt still had its directory")


def test_output_of_earlier_attempts_is_removed(tmp_path: Path) -> None:
    first = open_at(tmp_path, 1)
    first.output.mkdir()
    (first.output / "half").write_text("x")
    second = open_at(tmp_path, 2)
    assert not first.output.exists()
    assert not second.output.exists(), "the run makes it"


def test_only_the_latest_of_several_leftovers_is_taken(tmp_path: Path) -> None:
    for fence, name in ((2, "old"), (10, "new")):
        stages = tmp_path / "work" / JOB / str(fence) / "stages"
        stages.mkdir(parents=True)
        (stages / name).touch()
    space = open_at(tmp_path, 11)
    assert [path.name for path in space.stages.iterdir()] == ["new"]
    assert [path.name for path in space.root.parent.iterdir()] == ["11"]


def test_discarding_leaves_no_empty_directories(tmp_path: Path) -> None:
    space = open_at(tmp_path, 1)
    space.output.mkdir()
    space.discard_output()
    space.discard()
    assert not space.root.parent.exists()


def test_abandoned_jobs_are_old_and_look_like_jobs(tmp_path: Path) -> None:
    open_at(tmp_path, 1)
    (tmp_path / "work" / "somebody-elses").mkdir()
    work = tmp_path / "work"
    assert abandoned_jobs(work, older_than_seconds=-1) == {JOB}
    assert abandoned_jobs(work, older_than_seconds=3600) == frozenset()
    assert abandoned_jobs(tmp_path / "missing", older_than_seconds=-1) == frozenset()


def test_what_is_put_aside_is_out_of_reach_and_abandoned_until_it_is_removed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    space = open_at(tmp_path, 1)
    (space.stages / "train").mkdir()
    aside = put_aside(work, JOB)
    assert aside is not None
    assert not any(open_at(tmp_path, 2).stages.iterdir())
    assert abandoned_jobs(work, older_than_seconds=-1) == {JOB, aside.name}
    discard(aside)
    assert [path.name for path in work.iterdir()] == [JOB]
    assert put_aside(work, "job_2") is None


def test_dropping_stages_removes_them_and_their_beginnings_and_keeps_the_others(tmp_path: Path) -> None:
    space = open_at(tmp_path, 1)
    for name in ("load", "train", "train.partial", "select", "verify.partial"):
        (space.stages / name).mkdir()
    space.revision.write_text("c" * 40)
    texts = space.dataset_revision(Purpose.CALIBRATION)
    texts.write_text("d" * 40)
    for _ in range(2):  # as after a crash
        space.drop_stages(["train", "select", "verify"])
        assert [path.name for path in space.stages.iterdir()] == ["load"]
    assert space.revision.exists()
    assert texts.exists()
    space.drop_stages(["resolve"])
    assert not space.revision.exists()
    assert not texts.exists()


def test_a_retry_finds_the_stages_but_neither_output_nor_scratch(tmp_path: Path) -> None:
    space = open_at(tmp_path, 1)
    (space.stages / "train").mkdir()
    space.output.mkdir()
    space.discard_output()
    assert [path.name for path in space.root.iterdir()] == ["stages"]
    assert [path.name for path in open_at(tmp_path, 2).stages.iterdir()] == ["train"]
