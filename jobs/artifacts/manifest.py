"""What a directory holds, file by file: the manifest that a finished run publishes."""

import hashlib
import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

CHUNK_BYTES: Final = 1 << 20
_MEDIA_TYPES: Final = {
    ".safetensors": "application/vnd.safetensors",
    ".json": "application/json",
    ".jinja": "text/plain",
    ".md": "text/markdown",
    ".txt": "text/plain",
}

OnBytes = Callable[[int], None]
"""Told how many bytes are done since the last call, 0 while it hashes. What it raises stops the work, resumably."""


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One stored file. ``path`` is POSIX, relative to the stored directory; ``sha256`` hexadecimal."""

    path: str
    bytes: int
    sha256: str
    media_type: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


class UnsafeArtifactError(ValueError):
    """A name that a manifest can not carry, or something that is not a plain file or directory."""


def manifest_of(directory: Path, on_bytes: OnBytes) -> Iterator[tuple[Path, ManifestEntry]]:
    """Every file below ``directory`` with its entry, in the order of their paths; each is hashed when it is asked for.

    The whole tree is looked through before the first is. ``on_bytes`` hears 0 after every chunk that was hashed.

    Raises:
        UnsafeArtifactError: a link, a device or a name that a manifest can not carry.
        OSError: a file can not be read.
    """
    for path in _walk(directory):
        yield path, _entry(path, directory, on_bytes)


def total_bytes(directory: Path) -> int:
    """How many bytes the files below ``directory`` have. Raises: UnsafeArtifactError, OSError."""
    return sum(path.stat().st_size for path in _walk(directory))


def hash_file(path: Path, on_bytes: OnBytes) -> tuple[int, str]:
    """(size in bytes, hexadecimal SHA-256). ``on_bytes`` hears 0 after every chunk. Raises: OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            on_bytes(0)
    return size, digest.hexdigest()


def _walk(directory: Path) -> list[Path]:
    files: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            raise UnsafeArtifactError(f"{path.name!r} is a link; an artifact must be a plain file")
        if not path.name.isprintable():
            raise UnsafeArtifactError("an artifact's name has characters that can not be printed")
        if path.is_dir():
            files.extend(_walk(path))
        elif path.is_file():
            files.append(path)
        else:
            raise UnsafeArtifactError(f"{path.name!r} is neither a file nor a directory")
    return files


def _entry(path: Path, directory: Path, on_bytes: OnBytes) -> ManifestEntry:
    size, sha256 = hash_file(path, on_bytes)
    relative = path.relative_to(directory).as_posix()
    return ManifestEntry(path=relative, bytes=size, sha256=sha256, media_type=_media_type(path))


def _media_type(path: Path) -> str:
    known = _MEDIA_TYPES.get(path.suffix.lower())
    return known or mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def ignore_bytes(_: int) -> None:
    """Nobody listens."""
