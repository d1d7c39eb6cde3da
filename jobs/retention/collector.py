"""Garbage collection of the artifact store, by reference.

A blob goes when no row of ``artifacts`` names it and nobody has put it for QUANTRY_GC_GRACE_SECONDS; so do uploads that
were cut off and not gone on with for as long. Deleting a job removes its rows at once; its bytes follow here. The rows
of a job whose files expired stay, and cease to name anything after the grace. The reverse is looked for too, and only
reported: rows whose bytes are gone.

A publication puts its files first and writes its rows last. Each put makes a blob young, and the age is looked at once
more just before a blob is deleted: the grace only has to be longer than a publication takes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy.exc import DBAPIError

from jobs.artifacts import ArtifactStore, Blob, LegacyFiles, open_store
from jobs.kit.errors import Unavailable
from jobs.repository import blobs
from jobs.repository.database import Database
from jobs.settings import Settings

_BATCH: Final = 500


@dataclass(frozen=True)
class MissingFile:
    """A row whose bytes are nowhere."""

    artifact_id: str
    job_id: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection did, or would have done. ``incomplete``: uploads that were cut off.

    ``legacy``: jobs that are gone, whose files lay where the first release put them.
    """

    blobs: int
    bytes: int
    incomplete: int
    missing: tuple[MissingFile, ...]
    legacy: int = 0


@dataclass(frozen=True, kw_only=True)
class Collector:
    """One collection. ``stopped`` is asked between blobs; a collection that stops early is simply shorter."""

    database: Database
    store: ArtifactStore
    legacy: LegacyFiles
    grace_seconds: float
    dry_run: bool = False
    stopped: Callable[[], bool] = lambda: False

    @classmethod
    def of(
        cls, database: Database, settings: Settings, *, dry_run: bool = False, stopped: Callable[[], bool] | None = None
    ) -> "Collector":
        """As ``settings`` say."""
        return cls(
            database=database,
            store=open_store(settings),
            legacy=LegacyFiles(settings.artifacts_dir),
            grace_seconds=settings.gc_grace_seconds,
            dry_run=dry_run,
            stopped=stopped or (lambda: False),
        )

    def run(self) -> Collected | None:
        """Collect; None when another process does so now.

        Raises: Unavailable: the database or the store does not answer.
        """
        try:
            with blobs.collecting_alone(self.database.engine) as alone:
                return self._collect() if alone else None
        except DBAPIError as error:  # of the lock's own connection
            raise Unavailable from error

    def _collect(self) -> Collected:
        before = datetime.now(UTC) - timedelta(seconds=self.grace_seconds)
        deleted: list[Blob] = []
        missing: list[MissingFile] = []
        candidates: list[Blob] = []
        for blob, name in _side_by_side(self.store.blobs(), self._named()):
            if self.stopped():
                break
            if blob is None:
                missing += self._missing(name)
            elif name == "" and blob.modified < before:
                candidates.append(blob)
            if len(candidates) == _BATCH:
                deleted += self._delete(candidates, before)
                candidates = []
        deleted += self._delete(candidates, before)
        return Collected(
            blobs=len(deleted),
            bytes=sum(blob.bytes for blob in deleted),
            incomplete=self.store.discard_incomplete(before, dry_run=self.dry_run),
            missing=tuple(missing),
            legacy=self._discard_legacy(before),
        )

    def _named(self) -> Iterator[str]:
        """Every content that rows name, ascending, in short transactions."""
        last = ""
        while True:
            with self.database.transaction() as session:
                found = blobs.named_after(session, last, _BATCH, grace_seconds=self.grace_seconds)
            if not found:
                return
            yield from found
            last = found[-1]

    def _delete(self, candidates: list[Blob], before: datetime) -> Iterator[Blob]:
        """Those that were deleted: still named by no row, and put by nobody since they were listed."""
        with self.database.transaction() as session:
            contents = [blob.sha256 for blob in candidates]
            named = blobs.named(session, contents, grace_seconds=self.grace_seconds)
        for blob in candidates:
            if blob.sha256 in named or self.stopped():
                continue
            if self.dry_run or self.store.delete(blob.sha256, unless_since=before):
                yield blob

    def _discard_legacy(self, before: datetime) -> int:
        found = list(self.legacy.jobs(before))
        going: list[str] = []
        for start in range(0, len(found), _BATCH):
            batch = found[start : start + _BATCH]
            with self.database.transaction() as session:
                needed = blobs.jobs_with_files(session, batch, grace_seconds=self.grace_seconds)
            going += [job_id for job_id in batch if job_id not in needed]
        for job_id in going if not self.dry_run else ():
            self.legacy.delete(job_id)
        return len(going)

    def _missing(self, sha256: str) -> Iterator[MissingFile]:
        """The rows of one content, unless it came after the store was listed, or is where the first release put it."""
        if self.store.size(sha256) is not None:
            return
        with self.database.transaction() as session:
            rows = blobs.rows_of(session, sha256)
        for row in rows:
            if self.legacy.find(row.job_id, row.fence, row.path) is None:
                yield MissingFile(row.id, row.job_id, row.path, row.sha256)


def _side_by_side(stored: Iterator[Blob], named: Iterator[str]) -> Iterator[tuple[Blob | None, str]]:
    """Two ascending rows of contents, joined: (blob, name), (blob, "") named by no row, (None, name) not stored."""
    blob, name = next(stored, None), next(named, None)
    while blob is not None or name is not None:
        if name is None or (blob is not None and blob.sha256 < name):
            yield blob, ""
            blob = next(stored, None)
        elif blob is None or name < blob.sha256:
            yield None, name
            name = next(named, None)
        else:
            yield blob, name
            blob, name = next(stored, None), next(named, None)
