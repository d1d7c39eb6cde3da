"""Published files in ``<root>/<job_id>/<fence>/…``, found by a manifest, never by a path from a request."""

import hashlib
import mimetypes
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_CHUNK_BYTES: Final = 1 << 20
_MEDIA_TYPES: Final = {
    ".safetensors": "application/vnd.safetensors",
    ".json": "application/json",
    ".jinja": "text/plain",
    ".md": "text/markdown",
    ".txt": "text/plain",
}
_SAFE_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One adopted file. ``path`` is POSIX, relative to the adopted directory; ``sha256`` hexadecimal."""

    path: str
    bytes: int
    sha256: str
    media_type: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


class UnsafeArtifactError(ValueError):
    """A path that leaves its directory, or something that is not a plain file or directory."""


class ArtifactStore:
    """Files on the local disk, one directory per job and fence."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def output_dir(self, job_id: str, fence: int) -> Path:
        """The directory that the attempt with this fence writes to; created. Raises: UnsafeArtifactError, OSError."""
        directory = self._attempt_dir(job_id, fence)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def adopt(self, directory: Path) -> tuple[ManifestEntry, ...]:
        """Hash every file under ``directory``, in the order of their paths.

        Raises:
            UnsafeArtifactError: a link, a device or a name that a manifest can not carry.
            OSError: a file can not be read.
        """
        return tuple(_entry(path, directory) for path in _walk(directory))

    def open(self, job_id: str, fence: int, path: str) -> Path:
        """The absolute path of one manifest entry's file.

        Raises:
            FileNotFoundError: it is gone.
            UnsafeArtifactError: the entry points outside the attempt's directory.
        """
        base = self._attempt_dir(job_id, fence).resolve()
        candidate = (base / path).resolve()
        if PurePosixPath(path).is_absolute() or not candidate.is_relative_to(base) or candidate == base:
            raise UnsafeArtifactError("an artifact's path leads outside its job's directory")
        if not candidate.is_file():
            raise FileNotFoundError(f"the file of artifact {PurePosixPath(path).name!r} is gone")
        return candidate

    def keep_only(self, job_id: str, fence: int) -> None:
        """Remove what earlier attempts of the job left."""
        for directory in self._job_dir(job_id).glob("*"):
            if directory.name != str(fence):
                shutil.rmtree(directory, ignore_errors=True)

    def delete(self, job_id: str) -> None:
        """Remove every file of the job; nothing to remove is fine."""
        shutil.rmtree(self._job_dir(job_id), ignore_errors=True)

    def _attempt_dir(self, job_id: str, fence: int) -> Path:
        return self._job_dir(job_id) / str(int(fence))

    def _job_dir(self, job_id: str) -> Path:
        if not job_id or not _SAFE_ID.issuperset(job_id):
            raise UnsafeArtifactError("a job id has characters that no job id of this service has")
        return self.root / job_id


def _walk(directory: Path) -> list[Path]:
    files: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            raise UnsafeArtifactError(f"{path.name!r} is a link; an artifact must be a plain file")
        if path.is_dir():
            files.extend(_walk(path))
        elif path.is_file():
            files.append(path)
        else:
            raise UnsafeArtifactError(f"{path.name!r} is neither a file nor a directory")
    return files


def _entry(path: Path, directory: Path) -> ManifestEntry:
    relative = path.relative_to(directory).as_posix()
    if not relative.isprintable():
        raise UnsafeArtifactError("an artifact's name has characters that can not be printed")
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return ManifestEntry(path=relative, bytes=size, sha256=digest.hexdigest(), media_type=_media_type(path))


def _media_type(path: Path) -> str:
    known = _MEDIA_TYPES.get(path.suffix.lower())
    return known or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
