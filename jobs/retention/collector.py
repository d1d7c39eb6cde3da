"""Garbage collection of the artifact store, by reference.

A blob is deleted when no row of ``artifacts`` names it and it was not put for QUANTRY_GC_GRACE_SECONDS. Interrupted
uploads that did not grow for as long are deleted too. Deleting a job removes its rows at once and its bytes here. The
rows of a job whose files expired stay, and are no references after the grace period. Rows without bytes are also
searched for, and only reported.

A publication puts its files first and writes its rows last. Each put renews the time of the blob, and this time is
checked again just before a blob is deleted. So the grace period only has to be longer than a publication.
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
    """A row without bytes."""

    artifact_id: str
    job_id: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection did, or would have done. ``incomplete``: interrupted uploads.

    ``legacy``: deleted jobs whose files were still in the places of the first release.
    """

    blobs: int
    bytes: int
    incomplete: int
    missing: tuple[MissingFile, ...]
    legacy: int = 0


@dataclass(frozen=True, kw_only=True)
class Collector:
    """One collection. ``stopped`` is called between blobs; a collection may end early at any blob."""

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
        """Make the collector that ``settings`` describe."""
        return cls(
            database=database,
            store=open_store(settings),
            legacy=LegacyFiles(settings.artifacts_dir),
            grace_seconds=settings.gc_grace_seconds,
            dry_run=dry_run,
            stopped=stopped or (lambda: False),
        )

    def run(self) -> Collected | None:
        """Collect. Return None when another process collects now.

        Raises: Unavailable: the database or the store does not answer.
        """
        try:
            with blobs.collecting_alone(self.database.engine) as alone:
                return self._collect() if alone else None
        except DBAPIError as error:  # of the lock's own connection
            raise Unavailable from error

    def _collect(self) -> Collected:
        # Computed once: whatever is put after this moment is newer.
        before = datetime.now(UTC) - timedelta(seconds=self.grace_seconds)
        deleted: list[Blob] = []
        missing: list[MissingFile] = []
        candidates: list[Blob] = []
        # Both lists are sorted, so neither has to fit into memory.
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
        """Yield every content that rows name, ascending, in short transactions."""
        last = ""
        while True:
            with self.database.transaction() as session:
                found = blobs.named_after(session, last, _BATCH, grace_seconds=self.grace_seconds)
            if not found:
                return
            yield from found
            last = found[-1]

    def _delete(self, candidates: list[Blob], before: datetime) -> Iterator[Blob]:
        """Delete candidates that no row names now and that were not put since they were listed; yield them."""
        with self.database.transaction() as session:
            contents = [blob.sha256 for blob in candidates]
            named = blobs.named(session, contents, grace_seconds=self.grace_seconds)
        for blob in candidates:
            if blob.sha256 in named or self.stopped():
                continue
            # The store checks the time of the blob once more, under its own lock or just before it deletes.
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
        """Yield the rows of one content, unless it was stored since the listing, or is a file of the first release."""
        if self.store.size(sha256) is not None:
            return
        with self.database.transaction() as session:
            rows = blobs.rows_of(session, sha256)
        for row in rows:
            if self.legacy.find(row.job_id, row.fence, row.path) is None:
                yield MissingFile(row.id, row.job_id, row.path, row.sha256)


def _side_by_side(stored: Iterator[Blob], named: Iterator[str]) -> Iterator[tuple[Blob | None, str]]:
    """Join two ascending lists: (blob, name); (blob, "") if no row names it; (None, name) if it is not stored."""
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
