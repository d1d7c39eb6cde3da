"""A directory as one tar stream of known length, made while it is sent: nothing is held in memory or on disk."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class TarMember:
    """One file of the archive: the name it gets there, its size in bytes, and how to read exactly so many."""

    name: str
    size: int
    read: Callable[[], Iterator[bytes]]


def tar_length(members: Sequence[TarMember], *, modified: int) -> int:
    """How many bytes :func:`tar_chunks` will yield."""
    content = sum(len(_header(member, modified)) + _padded(member.size, tarfile.BLOCKSIZE) for member in members)
    return _padded(content + _END_OF_ARCHIVE, tarfile.RECORDSIZE)


def tar_chunks(members: Sequence[TarMember], *, modified: int) -> Iterator[bytes]:
    """The archive, chunk by chunk. ``modified`` is the time stamp, in Unix seconds, that every member gets.

    Raises whatever reading a member raises; the archive is then cut short of its length.
    """
    sent = 0
    for member in members:
        header = _header(member, modified)
        yield header
        yield from member.read()
        padding = _padded(member.size, tarfile.BLOCKSIZE) - member.size
        yield b"\0" * padding
        sent += len(header) + member.size + padding
    yield b"\0" * (_padded(sent + _END_OF_ARCHIVE, tarfile.RECORDSIZE) - sent)


def _header(member: TarMember, modified: int) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size = member.size
    info.mtime = modified
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block
