"""SQL of backup and restore: one snapshot for the dump and the list of files, and the changes after a restore."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, delete, func, inspect, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from jobs.kit.states import JobStatus
from jobs.repository.models import Artifact, Base, Chore, Job, Publication, WebhookDelivery, Worker

# More claims than could have been given out between a backup and its restore.
_FENCES_SKIPPED: Final = 1_000_000
_REVISION_TABLE: Final = "alembic_version"


@dataclass(frozen=True)
class NamedFile:
    """A content of a job's file, and one of the rows that name it."""

    sha256: str
    bytes: int
    job_id: str
    fence: int
    path: str


@dataclass(frozen=True)
class Snapshot:
    """One moment of the database, for ``pg_dump --snapshot``. It is valid until the ``with`` block ends."""

    id: str
    revision: str
    server_version: int
    files: Sequence[NamedFile]


@contextmanager
def snapshot(engine: Engine) -> Iterator[Snapshot]:
    """Open a snapshot. Raises: sqlalchemy.exc.DBAPIError: there is no database of this service."""
    with engine.connect() as opened:
        connection = opened.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # The transaction idles while pg_dump reads, and lists every file of the service, so it has no time limits.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield Snapshot(
            id=connection.scalars(text("SELECT pg_export_snapshot()")).one(),
            revision=connection.scalars(text(f"SELECT version_num FROM {_REVISION_TABLE}")).one(),  # noqa: S608 — a constant
            server_version=server_version(connection),
            files=_named_files(connection),
        )


def server_version(connection: Connection) -> int:
    """Return the server's major version."""
    return int(connection.scalars(text("SHOW server_version_num")).one()) // 10_000


def occupied(engine: Engine) -> str | None:
    """Return the name of a table with rows that a restore would remove; None for an empty service."""
    # A service writes these rows even without a job.
    spared = {Worker.__tablename__, Chore.__tablename__}
    with engine.connect() as connection:
        there = set(inspect(connection).get_table_names())
        for table in Base.metadata.sorted_tables:
            if table.name in there - spared and connection.scalars(select(table).exists().select()).one():
                return table.name
    return None


def drop_tables(engine: Engine) -> None:
    """Remove the service's tables, of any release, and nothing else."""
    with engine.begin() as connection:
        for name in (_REVISION_TABLE, *(table.name for table in Base.metadata.sorted_tables)):
            connection.execute(text(f"DROP TABLE IF EXISTS {name} CASCADE"))


def invalidate_claims(session: Session) -> None:
    """Skip the fences that were given out since the backup, so that no write from before the restore counts.

    A worker of that time may still run; without this, its fence could equal that of a later claim.
    """
    skipped = {"fence": Job.fence + _FENCES_SKIPPED}
    # No write can change a succeeded job, so its row stays as it was.
    session.execute(update(Job).where(Job.status != JobStatus.SUCCEEDED).values(skipped))
    session.execute(update(Publication).values(fence=Publication.fence + _FENCES_SKIPPED))
    session.execute(update(WebhookDelivery).values(fence=WebhookDelivery.fence + _FENCES_SKIPPED))
    session.execute(delete(Worker))


def count_jobs(session: Session) -> int:
    """Return the number of jobs."""
    return session.scalars(select(func.count()).select_from(Job)).one()


def _named_files(connection: Connection) -> Sequence[NamedFile]:
    """Return every content once, in ascending order, without those of jobs whose files expired."""
    columns = (Artifact.sha256, Artifact.bytes, Artifact.job_id, Artifact.fence, Artifact.path)
    rows = select(*columns).join(Job).where(Job.expired_at.is_(None)).ext(distinct_on(Artifact.sha256))
    return [NamedFile(*row) for row in connection.execute(rows.order_by(Artifact.sha256))]
