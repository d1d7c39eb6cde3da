"""The protocol of artifact stores: blobs are named by the SHA-256 of their content, so equal files are stored once.

A blob is never changed. ``put`` of existing content renews the blob's time. Garbage collection (``jobs.gc``) takes only
old blobs that no row names. So the blobs of a running publication are safe until its rows are committed.
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
    """The bytes of a blob do not match its name, or are fewer than its row says."""


@dataclass(frozen=True)
class Blob:
    """One stored content. ``modified`` is when it was stored; a later ``put`` may have renewed it since."""

    sha256: str
    bytes: int
    modified: datetime


class ArtifactStore(Protocol):
    """A place for blobs. Threads and other processes may use it at the same time.

    Every method raises :class:`jobs.kit.errors.StoreUnavailable` when the store does not answer, and ``StoreRefused``
    when it refuses; a local store raises OSError. A malformed ``sha256`` is a ValueError.
    """

    def put(self, directory: Path, *, on_bytes: OnBytes | None = None) -> tuple[ManifestEntry, ...]:
        """Store every file below ``directory``, by path. After an interruption, call it again: it continues.

        Once it returns, every blob is durable. The files may be linked into the store: do not write to them again.

        Raises: UnsafeArtifactError: a link, a device, an unprintable name; OSError: a file can not be read.
        """
        ...

    def size(self, sha256: str) -> int | None:
        """Return the size of a blob in bytes; None when there is none."""
        ...

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield bytes ``start`` up to ``start + length`` (or the end) in chunks of at most 256 KiB.

        The first chunk is read before this returns. So a missing blob, or a store that does not answer, is reported by
        this call. Raises: FileNotFoundError; while iterating, DamagedBlob when the blob ends too early.
        """
        ...

    def fetch(self, sha256: str, target: Path, *, on_bytes: OnBytes | None = None) -> None:
        """Write the whole blob to ``target`` and verify it. Its directory must exist. It may become a read-only link.

        After an interruption, call it again: it continues. Raises: FileNotFoundError, DamagedBlob, OSError.
        """
        ...

    def delete(self, sha256: str, *, unless_since: datetime | None = None) -> bool:
        """Remove a blob, unless it was put at or after ``unless_since``. Return whether one was removed."""
        ...

    def blobs(self) -> Iterator[Blob]:
        """Yield every blob, by ascending ``sha256``."""
        ...

    def discard_incomplete(self, before: datetime, *, dry_run: bool = False) -> int:
        """Remove unfinished uploads that did not grow since ``before``, and return their number."""
        ...


def require_sha256(text: str) -> str:
    """Return ``text``. Raises: ValueError: it is no hexadecimal SHA-256, and must not become a path."""
    if not _SHA256.fullmatch(text):
        raise ValueError("a blob is named by 64 lower-case hexadecimal digits")
    return text
