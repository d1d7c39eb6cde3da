"""Reading a file in pieces. Starlette pulls each piece in a worker thread, and drops the generator with its client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 1 << 18


class FileChanged(RuntimeError):
    """A file became shorter than its manifest says. The connection breaks, so that the client sees a short body."""


def read_chunks(path: Path, *, start: int, length: int) -> Iterator[bytes]:
    """``length`` bytes of the file from ``start`` on.

    Raises:
        OSError: the file can not be opened or read.
        FileChanged: the file ends too early.
    """
    with path.open("rb") as file:
        file.seek(start)
        while length > 0:
            chunk = file.read(min(length, _CHUNK_BYTES))
            if not chunk:
                raise FileChanged("a published file is shorter than its manifest says")
            length -= len(chunk)
            yield chunk
