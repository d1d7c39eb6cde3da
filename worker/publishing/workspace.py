"""A publication's directory on this machine: ``publishing/<publication_id>/<fence>/``.

An attempt takes over its predecessor's by renaming it to its own fence, as a job's attempt does: what was fetched from
the store is kept, and a stale attempt finds its paths gone.
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
        """The upload's home and temporary directory, thrown away with the attempt."""
        return self.root / _SCRATCH

    @property
    def log(self) -> Path:
        """What the uploads of every attempt wrote."""
        return self.root / "publish.log"

    def file(self, sha256: str) -> Path:
        """Where the content with this hash lies, once it was fetched."""
        return self.root / _FILES / sha256

    def discard(self) -> None:
        """Remove every attempt's directory: the publication is over."""
        shutil.rmtree(self.root.parent, ignore_errors=True)


def open_publish_workspace(publishing_dir: Path, publication_id: str, fence: int) -> PublishWorkspace:
    """The directory of attempt ``fence``, with what the latest earlier one fetched. Raises: OSError."""
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
    """Remove the directories of publications that are over, and that ended without this machine."""
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
