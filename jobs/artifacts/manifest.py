"""The manifest of a directory: an entry for each file, as a finished run publishes them."""

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
"""Called with the bytes done since the last call, 0 while hashing. An exception of it stops the work, resumably."""


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One stored file. ``path`` is a POSIX path relative to the stored directory; ``sha256`` is hexadecimal."""

    path: str
    bytes: int
    sha256: str
    media_type: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


class UnsafeArtifactError(ValueError):
    """A name that a manifest can not contain, or something that is not a plain file or directory."""


def manifest_of(directory: Path, on_bytes: OnBytes) -> Iterator[tuple[Path, ManifestEntry]]:
    """Yield every file below ``directory`` with its entry, by path. A file is hashed when its entry is requested.

    The whole tree is listed before the first file is hashed. ``on_bytes`` is called with 0 after every hashed chunk.

    Raises:
        UnsafeArtifactError: there is a link, a device or a name that a manifest can not contain.
        OSError: a file can not be read.
    """
    # ``_walk`` returns a list, so a bad name is reported before any byte is stored.
    for path in _walk(directory):
        yield path, _entry(path, directory, on_bytes)


def total_bytes(directory: Path) -> int:
    """Return the number of bytes of the files below ``directory``. Raises: UnsafeArtifactError, OSError."""
    return sum(path.stat().st_size for path in _walk(directory))


def hash_file(path: Path, on_bytes: OnBytes) -> tuple[int, str]:
    """Return (size in bytes, hexadecimal SHA-256). ``on_bytes`` is called with 0 after every chunk. Raises: OSError."""
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
        # A link could lead out of the directory, to files that are not the job's.
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
    # The own table comes first: mimetypes depends on the files of the machine.
    known = _MEDIA_TYPES.get(path.suffix.lower())
    return known or mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def ignore_bytes(_: int) -> None:
    """Do nothing, as the default for ``on_bytes``."""
