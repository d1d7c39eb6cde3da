"""A job's directories on this machine.

``work/<job_id>/<fence>/`` holds the stages that a later attempt resumes from. An attempt takes over its predecessor's
directory by renaming it to its own fence: a stale runner that still computes finds its paths gone and can not write
beside its successor. Its ``output`` is made anew by every attempt; published files live on in the artifact store.
"""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STAGES: Final = "stages"
_SCRATCH: Final = "scratch"
_OUTPUT: Final = "output"


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
    def log(self) -> Path:
        """What the subprocesses of every attempt wrote."""
        return self.root / "runner.log"

    def discard_output(self) -> None:
        """Remove the output: it is in the store, or will never be published."""
        _remove(self.output)

    def discard(self) -> None:
        """Remove every attempt's directory: the job is over."""
        _remove(self.root.parent)


def open_workspace(work_dir: Path, job_id: str, fence: int) -> Workspace:
    """The directories of attempt ``fence``, with what the latest earlier attempt left for it.

    Raises:
        OSError: the disk is full or not writable.
    """
    home = work_dir / job_id
    space = Workspace(root=home / str(fence))
    home.mkdir(parents=True, exist_ok=True)
    earlier = _fences_below(home, fence)
    if earlier and not space.root.exists():
        earlier.pop().rename(space.root)
    for stale in [*earlier, space.output, space.scratch]:
        _remove(stale)
    for directory in (space.stages, space.scratch):
        directory.mkdir(parents=True, exist_ok=True)
    return space


def discard_job(work_dir: Path, job_id: str) -> None:
    """Remove every attempt's directory of a job that is over."""
    _remove(work_dir / job_id)


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
