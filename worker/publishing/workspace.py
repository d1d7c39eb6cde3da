"""The directory of a publication on this machine: ``publishing/<publication_id>/<fence>/``.

As for jobs, an attempt takes over the directory of the attempt before it, and renames it to its own fence. Files that
were fetched from the store are used again, and a stale attempt finds its paths gone.
"""

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FILES: Final = "files"
_SCRATCH: Final = "scratch"


@dataclass(frozen=True)
class PublishWorkspace:
    """The directory of one attempt."""

    root: Path

    @property
    def scratch(self) -> Path:
        """The upload's home and temporary directory, which is removed after the attempt."""
        return self.root / _SCRATCH

    @property
    def log(self) -> Path:
        """The log file of the uploads of all attempts."""
        return self.root / "publish.log"

    def file(self, sha256: str) -> Path:
        """Return the path of the content with this hash, once it is fetched."""
        return self.root / _FILES / sha256

    def discard(self) -> None:
        """Remove the directories of all attempts, because the publication is over."""
        shutil.rmtree(self.root.parent, ignore_errors=True)


def open_publish_workspace(publishing_dir: Path, publication_id: str, fence: int) -> PublishWorkspace:
    """Open the directory of attempt ``fence``, with the files that the latest earlier one fetched. Raises: OSError."""
    home = publishing_dir / publication_id
    workspace = PublishWorkspace(home / str(fence))
    home.mkdir(parents=True, exist_ok=True)
    *stale, latest = [None, *sorted((path for path in home.iterdir() if _is_before(path, fence)), key=_fence_of)]
    if latest is not None and not workspace.root.exists():
        latest.rename(workspace.root)
    for path in (*stale, workspace.scratch):
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
    for directory in (workspace.scratch, workspace.root / _FILES):
        directory.mkdir(parents=True, exist_ok=True)
    return workspace


def discard_abandoned(
    publishing_dir: Path, unfinished: Callable[[Collection[str]], frozenset[str]], *, older_than_seconds: float
) -> None:
    """Remove the directories of publications that ended elsewhere, and are older than ``older_than_seconds``."""
    if not publishing_dir.is_dir():
        return
    before = time.time() - older_than_seconds
    found = {path.name: path for path in publishing_dir.glob("pub_*") if path.stat().st_mtime < before}
    for name in found.keys() - unfinished(found.keys()):
        shutil.rmtree(found[name], ignore_errors=True)


def _is_before(path: Path, fence: int) -> bool:
    return path.name.isdecimal() and int(path.name) < fence


def _fence_of(path: Path) -> int:
    return int(path.name)
