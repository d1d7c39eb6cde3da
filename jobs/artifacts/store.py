"""What an artifact store is: blobs named by the SHA-256 of their content, so that equal files are stored once.

A blob is never changed. ``put`` of content that is there already makes the blob young again, and garbage collection
(``jobs.gc``) takes only old blobs that no row names: what a running publication has put is safe until its row stands.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from jobs.artifacts.manifest import ManifestEntry, OnBytes

READ_BYTES: Final = 1 << 18
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class DamagedBlob(RuntimeError):
    """A blob's bytes are not those its name promises, or fewer than its row says."""


@dataclass(frozen=True)
class Blob:
    """One stored content. ``modified``: when it was stored; a later ``put`` may have refreshed it since."""

    sha256: str
    bytes: int
    modified: datetime


class ArtifactStore(Protocol):
    """A place for blobs. Safe from any thread and beside other processes.

    Every method raises :class:`jobs.kit.errors.StoreUnavailable` when the store does not answer, ``StoreRefused`` when
    it does and says no; a local one raises OSError. A ``sha256`` that is none is a ValueError.
    """

    def put(self, directory: Path, *, on_bytes: OnBytes | None = None) -> tuple[ManifestEntry, ...]:
        """Store every file below ``directory``, by path. Cut off, it can be called again and goes on where it was.

        Once it returns, every blob is durable. The files may be linked into the store: do not write into them again.

        Raises: UnsafeArtifactError: a link, a device, an unprintable name; OSError: a file can not be read.
        """
        ...

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob; None when there is none."""
        ...

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Bytes ``start`` up to ``start + length`` (or the end) in chunks of at most 256 KiB.

        The first chunk is read before this returns, so that a blob that is gone, or a store that does not answer, is
        known by then. Raises: FileNotFoundError; while iterating, DamagedBlob when the blob ends too early.
        """
        ...

    def fetch(self, sha256: str, target: Path, *, on_bytes: OnBytes | None = None) -> None:
        """The whole blob as the file ``target``, verified; its directory exists. ``target`` may be a read-only link.

        Cut off, it can be called again and goes on where it was. Raises: FileNotFoundError, DamagedBlob, OSError.
        """
        ...

    def delete(self, sha256: str, *, unless_since: datetime | None = None) -> bool:
        """Remove a blob, unless it was put at or after ``unless_since``. Whether one was removed."""
        ...

    def blobs(self) -> Iterator[Blob]:
        """Every blob, by ascending ``sha256``."""
        ...

    def discard_incomplete(self, before: datetime, *, dry_run: bool = False) -> int:
        """Remove what uploads left that nobody has gone on with since ``before``; how many there were."""
        ...


def require_sha256(text: str) -> str:
    """``text`` itself. Raises: ValueError: it is no hexadecimal SHA-256, and must not become a path."""
    if not _SHA256.fullmatch(text):
        raise ValueError("a blob is named by 64 lower-case hexadecimal digits")
    return text
