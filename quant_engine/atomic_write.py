"""Write files that are either complete or absent: each is written under a temporary name and then renamed.

This holds when the process is killed. Nothing is flushed to the disk, so it does not hold when the machine loses power.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp"
"""Suffix of files that are being written. A kill may leave such a file; no reader uses it."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to ``path`` when the block ends without an error."""
    # The same directory is the same file system, where a rename is atomic.
    temporary = path.with_name(path.name + TEMPORARY)
    yield temporary
    temporary.replace(path)
