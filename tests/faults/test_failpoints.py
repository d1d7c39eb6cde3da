"""A fail point kills one process, once, at the place it names; and the journal outlives whoever wrote it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.failpoints import DIRECTORY, FailPoint, Moment, arm, disarm, fired, is_armed
from tests.faults.fleet import ROOT
from tests.faults.witness import Journal, read_journal

FIVE_RENAMES = """
import pathlib, sys
from tests.faults.failpoints import install
home = pathlib.Path(sys.argv[1])
install("runner", home)
for number in range(5):
    draft = home / "draft"
    draft.write_text("")
    draft.rename(home / f"file-{number}")
"""


def five_renames(home: Path) -> int:
    return subprocess.run([sys.executable, "-c", FIVE_RENAMES, str(home)], cwd=ROOT, check=False).returncode


@pytest.mark.parametrize(("moment", "renamed"), [("before", 2), ("after", 3)])
def test_a_process_dies_at_the_third_rename_and_the_next_one_lives(
    tmp_path: Path, moment: Moment, renamed: int
) -> None:
    (tmp_path / DIRECTORY).mkdir()
    arm(tmp_path, FailPoint("runner", "rename", moment, hits=3))
    assert five_renames(tmp_path) == -signal.SIGKILL
    assert len(list(tmp_path.glob("file-*"))) == renamed
    assert [shot.name for shot in fired(tmp_path)] == [f"runner.rename.{moment}"]
    assert not is_armed(tmp_path)
    assert five_renames(tmp_path) == 0


def test_a_point_of_another_process_or_taken_away_kills_nobody(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).mkdir()
    arm(tmp_path, FailPoint("worker", "rename", "before", hits=1))
    assert five_renames(tmp_path) == 0
    arm(tmp_path, FailPoint("runner", "rename", "before", hits=1))
    disarm(tmp_path)
    assert five_renames(tmp_path) == 0
    assert list(fired(tmp_path)) == []


def test_a_journal_is_read_up_to_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    journal.write("accepted", at=1.0, job="job_1")
    journal.write("fault", at=2.0, name="kill_api")
    journal.close()
    assert read_journal(file) == journal.entries
    with file.open("ab") as torn:
        torn.write(b'{"what": "acc')
    assert [entry["what"] for entry in read_journal(file)] == ["accepted", "fault"]
