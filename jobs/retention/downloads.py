"""Abandoned downloads of models and data sets on this machine's disk: interrupted, and not continued.

``worker.download`` writes a model to ``<id>/<commit>.partial`` and holds ``<commit>.lock`` meanwhile; with a data set
it does the same. A job that asks for it again continues the download. Complete ones stay, as the operator's cache.
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
    """The number of downloads that were removed, or would have been, and their bytes."""

    downloads: int = 0
    bytes: int = 0


def discard_downloads(*cache_dirs: Path, older_than_seconds: float, dry_run: bool = False) -> Discarded:
    """Remove downloads that got no byte for ``older_than_seconds``; 0 keeps them for ever."""
    if older_than_seconds <= 0:
        return Discarded()
    before = time.time() - older_than_seconds
    found = [path for cache in cache_dirs for pattern in _PATTERNS for path in sorted(cache.glob(pattern))]
    sizes = [_discard(path, before, dry_run) for path in found]
    removed = [size for size in sizes if size is not None]
    return Discarded(len(removed), sum(removed))


def _discard(partial: Path, before: float, dry_run: bool) -> int | None:
    """Remove one download and return its bytes; None if it continues or may continue."""
    # The lock shows a running download even if no byte arrives for a long time.
    with _locked(partial.with_suffix(".lock")) as free:
        if not free:
            return None
        try:
            size, newest = _extent(partial)
        except FileNotFoundError:
            return None  # it was completed and renamed meanwhile
        if newest >= before:
            return None
        if not dry_run:
            shutil.rmtree(partial, ignore_errors=True)
        return size


def _extent(directory: Path) -> tuple[int, float]:
    """Return (bytes, newest modification) of a directory's files; of the directory alone when it has none."""
    size, newest = 0, directory.stat().st_mtime
    for path in directory.rglob("*"):
        stat = path.stat()
        newest = max(newest, stat.st_mtime)
        size += stat.st_size if path.is_file() else 0
    return size, newest


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to lock a download. Yield True with the lock held, so that none begins meanwhile; else False."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
