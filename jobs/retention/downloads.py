"""Downloads of models that were cut off and that nobody has gone on with, on this machine's disk.

``worker.download`` lets a model grow in ``<id>/<commit>.partial`` and holds ``<commit>.lock`` meanwhile; a job that
asks for the model again goes on with it. Whole models stay: they are the operator's cache.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PATTERNS: Final = ("*/*.partial", "*/*/*.partial")  # <name>/<commit> and <owner>/<name>/<commit>


@dataclass(frozen=True)
class Discarded:
    """How many downloads were removed, or would have been, and their bytes."""

    downloads: int = 0
    bytes: int = 0


def discard_downloads(cache_dir: Path, *, older_than_seconds: float, dry_run: bool = False) -> Discarded:
    """Remove downloads that no byte has come to for so long; 0 keeps them for ever."""
    if older_than_seconds <= 0:
        return Discarded()
    before = time.time() - older_than_seconds
    sizes = [_discard(path, before, dry_run) for pattern in _PATTERNS for path in sorted(cache_dir.glob(pattern))]
    removed = [size for size in sizes if size is not None]
    return Discarded(len(removed), sum(removed))


def _discard(partial: Path, before: float, dry_run: bool) -> int | None:
    """The bytes of what was removed; None of a download that goes on, or may."""
    with _locked(partial.with_suffix(".lock")) as free:
        if not free:
            return None
        try:
            size, newest = _extent(partial)
        except FileNotFoundError:
            return None  # it became whole meanwhile
        if newest >= before:
            return None
        if not dry_run:
            shutil.rmtree(partial, ignore_errors=True)
        return size


def _extent(directory: Path) -> tuple[int, float]:
    """(bytes, newest modification) of a directory's files; of the directory alone when it has none."""
    size, newest = 0, directory.stat().st_mtime
    for path in directory.rglob("*"):
        stat = path.stat()
        newest = max(newest, stat.st_mtime)
        size += stat.st_size if path.is_file() else 0
    return size, newest


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether no download holds the lock; then it is held here, so that none begins meanwhile."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
