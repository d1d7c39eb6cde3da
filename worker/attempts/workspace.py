"""The directories of a job on this machine.

``work/<job_id>/<fence>/`` holds the stages that a later attempt resumes from. An attempt takes over the directory of
the attempt before it, and renames it to its own fence. A stale runner that still computes then finds its paths gone,
and can not write into the new attempt's files. Every attempt makes its ``output`` anew; published files are in the
artifact store.

The stages of a job that failed or was cancelled stay for a while, so that a retry can resume from them.
"""

import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quant_engine.interface.stages import RESOLVE

_STAGES: Final = "stages"
_SCRATCH: Final = "scratch"
_OUTPUT: Final = "output"
_REVISION: Final = "revision"
_PARTIAL: Final = ".partial"  # the engine's suffix of a stage that is not complete


@dataclass(frozen=True)
class Workspace:
    """The directories of one attempt. ``stages`` is the engine's, ``scratch`` its home and temporary directory."""

    root: Path

    @property
    def output(self) -> Path:
        """The result of the run, in a directory that the run creates."""
        return self.root / _OUTPUT

    @property
    def stages(self) -> Path:
        """The stages, which stay for the next attempt."""
        return self.root / _STAGES

    @property
    def scratch(self) -> Path:
        """Temporary files, which are removed at the end of the attempt."""
        return self.root / _SCRATCH

    @property
    def preview(self) -> Path:
        """A Hub model's files without its weights; removed at the end of the attempt."""
        return self.scratch / "preview"

    @property
    def revision(self) -> Path:
        """The file with the commit that the model's revision was resolved to."""
        return self.root / _REVISION

    @property
    def log(self) -> Path:
        """The log file of the subprocesses of all attempts."""
        return self.root / "runner.log"

    def drop_stages(self, names: Iterable[str]) -> None:
        """Remove the files of these stages, complete or not. It can be repeated after a crash."""
        for name in names:
            for directory in (self.stages / name, self.stages / (name + _PARTIAL)):
                _remove(directory)
            # A retry from this stage resolves the revision again, perhaps to a newer commit.
            if name == RESOLVE.name:
                self.revision.unlink(missing_ok=True)

    def discard_output(self) -> None:
        """Remove the files that only this attempt needed. Its output is in the store, or will not be published."""
        _remove(self.output)
        _remove(self.scratch)

    def discard(self) -> None:
        """Remove the directories of all attempts of the job."""
        _remove(self.root.parent)


def open_workspace(work_dir: Path, job_id: str, fence: int) -> Workspace:
    """Open the directories of attempt ``fence``, with the stages that the latest earlier attempt left.

    Raises:
        OSError: the disk is full or not writable.
    """
    home = work_dir / job_id
    workspace = Workspace(root=home / str(fence))
    home.mkdir(parents=True, exist_ok=True)
    earlier = _fences_below(home, fence)
    if earlier and not workspace.root.exists():
        # One rename, so that a runner of the earlier attempt loses its paths at once.
        earlier.pop().rename(workspace.root)
    for stale in [*earlier, workspace.output, workspace.scratch]:
        _remove(stale)
    for directory in (workspace.stages, workspace.scratch):
        directory.mkdir(parents=True, exist_ok=True)
    return workspace


def put_aside(work_dir: Path, job_id: str) -> Path | None:
    """Rename the directories of a job that is over, so that an attempt after a retry does not find them.

    The new name belongs to no job, so a later sweep also removes what a crash leaves of it. Returns None if the
    directory is gone or can not be renamed.
    """
    aside = work_dir / f"{job_id}.over-{time.time_ns()}"
    try:
        (work_dir / job_id).rename(aside)
    except OSError:
        return None
    return aside


def discard(directory: Path) -> None:
    """Remove a directory that was put aside."""
    _remove(directory)


def abandoned_jobs(work_dir: Path, *, older_than_seconds: float) -> frozenset[str]:
    """Return the jobs whose directory no attempt has changed lately. Only the database knows if they are over."""
    if not work_dir.is_dir():
        return frozenset()
    before = time.time() - older_than_seconds
    return frozenset(path.name for path in work_dir.glob("job_*") if _modified(path) < before)


def _fences_below(home: Path, fence: int) -> list[Path]:
    """Return the directories that are named by a lower fence, lowest first."""
    if not home.is_dir():
        return []
    numbered = [path for path in home.iterdir() if path.name.isdecimal() and int(path.name) < fence]
    return sorted(numbered, key=lambda path: int(path.name))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf  # removed meanwhile


def _remove(path: Path) -> None:
    # A stale runner may write or remove files at the same time; a file that is gone already is no error.
    shutil.rmtree(path, ignore_errors=True)
