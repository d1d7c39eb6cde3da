"""Blobs on a local disk, as ``<root>/blobs/<2 hex>/<sha256>``. Unfinished files are in ``<root>/incoming/``."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final

from jobs.artifacts.manifest import CHUNK_BYTES, ManifestEntry, OnBytes, hash_file, ignore_bytes, manifest_of
from jobs.artifacts.store import READ_BYTES, Blob, DamagedBlob, require_sha256

# The file system can not make this link, so the file is copied. Other errors are real ones.
_NO_LINK: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
)
# A hard link shares its content with the blob: a write through it would change the blob.
_READ_ONLY: Final = 0o444


class LocalStore:
    """An :class:`jobs.artifacts.ArtifactStore` in a directory, which is created with the first file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, directory: Path, *, on_bytes: OnBytes | None = None) -> tuple[ManifestEntry, ...]:
        """Store every file, as a hard link where the file system can, else as a copy; see the protocol."""
        report_bytes = on_bytes or ignore_bytes
        entries = []
        for path, entry in manifest_of(directory, report_bytes):
            self._keep(path, entry, report_bytes)
            entries.append(entry)
        return tuple(entries)

    def size(self, sha256: str) -> int | None:
        """Return the size of a blob in bytes; None when there is none."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a part of a blob in chunks; see the protocol."""
        return read_file(self.path(sha256), start=start, length=length)

    def fetch(self, sha256: str, target: Path, *, on_bytes: OnBytes | None = None) -> None:
        """Write the blob to ``target``: as a read-only hard link where the file system can, else as a copy."""
        report_bytes = on_bytes or ignore_bytes
        source = self.path(sha256)
        # A hard link can not replace an existing file.
        target.unlink(missing_ok=True)
        if not _try_link(source, target):
            _copy(source, target, report_bytes)
        # Also for a link: the disk may have damaged the blob since it was stored.
        size, found = hash_file(target, report_bytes)
        if found != sha256:
            target.unlink()
            raise DamagedBlob("the content of a blob on the disk does not match its name")
        report_bytes(size)

    def delete(self, sha256: str, *, unless_since: datetime | None = None) -> bool:
        """Remove a blob. The lock prevents that a ``put`` renews it between the check of its age and the removal."""
        path = self.path(sha256)
        if not path.exists():
            return False
        # The lock file is in the root, which exists if the blob does.
        with self._locked(fcntl.LOCK_EX):
            try:
                modified = _modified(path)
            except FileNotFoundError:
                return False
            if unless_since is not None and modified >= unless_since:
                return False
            path.unlink(missing_ok=True)
        return True

    def blobs(self) -> Iterator[Blob]:
        """Yield every blob, by ascending ``sha256``."""
        for directory in _sorted(self._blobs):
            for path in _sorted(directory):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # deleted meanwhile
                yield Blob(path.name, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def discard_incomplete(self, before: datetime, *, dry_run: bool = False) -> int:
        """Remove unfinished copies that are older than ``before``, and return their number."""
        found = 0
        for path in _sorted(self._incoming):
            try:
                if _modified(path) < before:
                    found += 1
                    if not dry_run:
                        path.unlink()
            except FileNotFoundError:
                continue  # finished meanwhile
        return found

    def path(self, sha256: str) -> Path:
        """Return the path of the blob, whether or not it exists. Raises: ValueError."""
        return self._blobs / require_sha256(sha256)[:2] / sha256

    @property
    def _blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def _incoming(self) -> Path:
        return self.root / "incoming"

    def _keep(self, path: Path, entry: ManifestEntry, report_bytes: OnBytes) -> None:
        blob = self.path(entry.sha256)
        if not self._refresh(blob, entry.bytes):
            blob.parent.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
            # A random name: two processes may store the same content at the same time.
            aside = self._incoming / f"{entry.sha256}.{secrets.token_hex(8)}"
            try:
                _bring(path, aside, entry, report_bytes)
                # The rename is atomic, so a blob with its final name is always whole.
                aside.replace(blob)
            finally:
                aside.unlink(missing_ok=True)
            # Without this a power failure could undo the rename, although the file's own bytes are on the disk.
            _sync_directory(blob.parent)
        report_bytes(entry.bytes)

    def _refresh(self, blob: Path, size: int) -> bool:
        """Set the time of an existing blob to now. False: the blob must be stored."""
        if not blob.exists():
            return False
        with self._locked(fcntl.LOCK_SH):
            try:
                # A blob of another size is damaged; storing it again replaces it.
                if blob.stat().st_size != size:
                    return False
                os.utime(blob)
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the lock that separates deleting from refreshing, for all processes; it ends with its process."""
        with (self.root / ".lock").open("ab") as file:
            fcntl.flock(file, kind)
            yield


def read_file(path: Path, *, start: int, length: int | None) -> Iterator[bytes]:
    """Yield ``length`` bytes of a file from ``start`` on, or all that follow. This call reads the first chunk.

    Raises: FileNotFoundError; while iterating, DamagedBlob when the file ends too early.
    """
    chunks = _chunks(path, start, length)
    # Reading the first chunk opens the file, so a missing file is found here and not while the response is sent.
    return chain((next(chunks, b""),), chunks)


def _chunks(path: Path, start: int, length: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = max(os.fstat(file.fileno()).st_size - start, 0) if length is None else length
        file.seek(start)
        while left > 0:
            chunk = file.read(min(left, READ_BYTES))
            if not chunk:
                raise DamagedBlob("a published file is shorter than its manifest says")
            left -= len(chunk)
            yield chunk
        yield b""


def _bring(path: Path, aside: Path, entry: ManifestEntry, report_bytes: OnBytes) -> None:
    """Make the file ``aside``: whole, on the disk, with the current time, and read-only."""
    if not _try_link(path, aside):
        _copy(path, aside, report_bytes)
        # The file may have changed between the first hash and the copy.
        if hash_file(aside, report_bytes) != (entry.bytes, entry.sha256):
            raise DamagedBlob(f"{path.name!r} changed while it was stored")
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.chmod(_READ_ONLY)
    os.utime(aside)


def _try_link(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _copy(source: Path, target: Path, report_bytes: OnBytes) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            # No byte is finished yet, but the caller may stop the work here.
            report_bytes(0)


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _sorted(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
