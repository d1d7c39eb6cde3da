"""A directory as one tar stream of known length. It is made while it is sent, without a copy in memory or on disk."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# A tar ends with two blocks of zeros.
_END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class TarMember:
    """One file of the archive: its name there, its size in bytes, and a function that reads exactly ``size`` bytes."""

    name: str
    size: int
    read: Callable[[], Iterator[bytes]]


def tar_length(members: Sequence[TarMember], *, modified: int) -> int:
    """Return how many bytes :func:`tar_chunks` yields."""
    content = sum(len(_header(member, modified)) + _padded(member.size, tarfile.BLOCKSIZE) for member in members)
    return _padded(content + _END_OF_ARCHIVE, tarfile.RECORDSIZE)


def tar_chunks(members: Sequence[TarMember], *, modified: int) -> Iterator[bytes]:
    """Yield the archive in chunks. ``modified`` is the time stamp, in Unix seconds, that every member gets.

    An error of a member's ``read`` is passed on; the archive then ends before its full length.
    """
    sent = 0
    for member in members:
        header = _header(member, modified)
        yield header
        yield from member.read()
        padding = _padded(member.size, tarfile.BLOCKSIZE) - member.size
        # Each file fills whole blocks, and the archive whole records, as in the tar format.
        yield b"\0" * padding
        sent += len(header) + member.size + padding
    yield b"\0" * (_padded(sent + _END_OF_ARCHIVE, tarfile.RECORDSIZE) - sent)


def _header(member: TarMember, modified: int) -> bytes:
    info = tarfile.TarInfo(member.name)
    # Owner and mode keep tarfile's defaults, so the bytes do not depend on the machine.
    info.size = member.size
    info.mtime = modified
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _padded(size: int, block: int) -> int:
    # Division of the negated number rounds up.
    return -(-size // block) * block
