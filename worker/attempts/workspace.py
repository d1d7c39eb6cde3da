"""A job's directories on this machine.

``work/<job_id>/<fence>/`` holds the stages that a later attempt resumes from. An attempt takes over its predecessor's
directory by renaming it to its own fence: a stale runner that still computes finds its paths gone and can not write
beside its successor. Its ``output`` is made anew by every attempt; published files live on in the artifact store.

Of a job that failed or was cancelled the stages stay for a while, for a retry to resume from.
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
_PARTIAL: Final = ".partial"  # what the engine calls a stage that is not complete


@dataclass(frozen=True)
class Workspace:
    """The directories of one attempt. ``stages`` is the engine's, ``scratch`` its home and temporary directory."""

    root: Path

    @property
    def output(self) -> Path:
        """What the run makes; the run creates it."""
        return self.root / _OUTPUT

    @property
    def stages(self) -> Path:
        """What is kept for the next attempt."""
        return self.root / _STAGES

    @property
    def scratch(self) -> Path:
        """What is thrown away with the attempt."""
        return self.root / _SCRATCH

    @property
    def revision(self) -> Path:
        """The commit that the model's revision was resolved to."""
        return self.root / _REVISION

    @property
    def log(self) -> Path:
        """What the subprocesses of every attempt wrote."""
        return self.root / "runner.log"

    def drop_stages(self, names: Iterable[str]) -> None:
        """Remove what earlier attempts left of these stages. Repeated after a crash, it ends the same."""
        for name in names:
            for directory in (self.stages / name, self.stages / (name + _PARTIAL)):
                _remove(directory)
            if name == RESOLVE.name:
                self.revision.unlink(missing_ok=True)

    def discard_output(self) -> None:
        """Remove what only this attempt needed: its output is in the store, or will never be published."""
        _remove(self.output)
        _remove(self.scratch)

    def discard(self) -> None:
        """Remove every attempt's directory: the job is over."""
        _remove(self.root.parent)


def open_workspace(work_dir: Path, job_id: str, fence: int) -> Workspace:
    """The directories of attempt ``fence``, with what the latest earlier attempt left for it.

    Raises:
        OSError: the disk is full or not writable.
    """
    home = work_dir / job_id
    workspace = Workspace(root=home / str(fence))
    home.mkdir(parents=True, exist_ok=True)
    earlier = _fences_below(home, fence)
    if earlier and not workspace.root.exists():
        earlier.pop().rename(workspace.root)
    for stale in [*earlier, workspace.output, workspace.scratch]:
        _remove(stale)
    for directory in (workspace.stages, workspace.scratch):
        directory.mkdir(parents=True, exist_ok=True)
    return workspace


def put_aside(work_dir: Path, job_id: str) -> Path | None:
    """Rename the directories of a job that is over: an attempt after a retry can not find them any more.

    The new name is no job's, so that what a crash leaves of it is abandoned. None when it is gone already, or can not
    be renamed.
    """
    aside = work_dir / f"{job_id}.over-{time.time_ns()}"
    try:
        (work_dir / job_id).rename(aside)
    except OSError:
        return None
    return aside


def discard(directory: Path) -> None:
    """Remove what was put aside."""
    _remove(directory)


def abandoned_jobs(work_dir: Path, *, older_than_seconds: float) -> frozenset[str]:
    """Jobs whose directory here no attempt has touched lately; whether they are over, the database knows."""
    if not work_dir.is_dir():
        return frozenset()
    before = time.time() - older_than_seconds
    return frozenset(path.name for path in work_dir.glob("job_*") if _modified(path) < before)


def _fences_below(home: Path, fence: int) -> list[Path]:
    """Directories named by a lower fence, lowest first."""
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
    # A stale runner may write or remove beside us: what is gone already is as good as removed.
    shutil.rmtree(path, ignore_errors=True)
