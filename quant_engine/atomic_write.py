"""Files that are whole or absent: written beside their place and renamed into it.

That holds against a killed process. Nothing is forced to the disk, so not against a machine that loses its power.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp"
"""Ends the names of files under way; what a kill leaves of them is nobody's."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends well: ``path`` is whole or absent."""
    temporary = path.with_name(path.name + TEMPORARY)
    yield temporary
    temporary.replace(path)
