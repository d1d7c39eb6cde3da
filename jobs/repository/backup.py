"""SQL of backup and restore: one snapshot for the dump and the list of files, and rows that a restore makes anew."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, delete, func, inspect, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from jobs.kit.states import JobStatus
from jobs.repository.models import Artifact, Base, Chore, Job, Publication, WebhookDelivery, Worker

_FENCES_SKIPPED: Final = 1_000_000
_REVISION_TABLE: Final = "alembic_version"


@dataclass(frozen=True)
class NamedFile:
    """A content that a job has, and one of the rows that name it."""

    sha256: str
    bytes: int
    job_id: str
    fence: int
    path: str


@dataclass(frozen=True)
class Snapshot:
    """A moment of the database, of which ``pg_dump --snapshot`` makes its dump, as long as the block lasts."""

    id: str
    revision: str
    server_version: int
    files: Sequence[NamedFile]


@contextmanager
def snapshot(engine: Engine) -> Iterator[Snapshot]:
    """Raises: sqlalchemy.exc.DBAPIError: there is no database of this service."""
    with engine.connect() as opened:
        connection = opened.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # It idles while pg_dump reads, and lists every file of the service.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield Snapshot(
            id=connection.scalars(text("SELECT pg_export_snapshot()")).one(),
            revision=connection.scalars(text(f"SELECT version_num FROM {_REVISION_TABLE}")).one(),  # noqa: S608 — a constant
            server_version=server_version(connection),
            files=_named_files(connection),
        )


def server_version(connection: Connection) -> int:
    """The server's major version."""
    return int(connection.scalars(text("SHOW server_version_num")).one()) // 10_000


def occupied(engine: Engine) -> str | None:
    """The name of a table that has rows which a restore would take away; None of an empty service."""
    spared = {Worker.__tablename__, Chore.__tablename__}
    with engine.connect() as connection:
        there = set(inspect(connection).get_table_names())
        for table in Base.metadata.sorted_tables:
            if table.name in there - spared and connection.scalars(select(table).exists().select()).one():
                return table.name
    return None


def drop_tables(engine: Engine) -> None:
    """Remove the service's tables, whatever release made them, and nothing else."""
    with engine.begin() as connection:
        for name in (_REVISION_TABLE, *(table.name for table in Base.metadata.sorted_tables)):
            connection.execute(text(f"DROP TABLE IF EXISTS {name} CASCADE"))


def invalidate_claims(session: Session) -> None:
    """Let no write of before the restore count: skip the fences that were given out since the backup was made.

    A worker of that time may still run; without this, its fence could equal that of a claim to come.
    """
    skipped = {"fence": Job.fence + _FENCES_SKIPPED}
    session.execute(update(Job).where(Job.status != JobStatus.SUCCEEDED).values(skipped))
    session.execute(update(Publication).values(fence=Publication.fence + _FENCES_SKIPPED))
    session.execute(update(WebhookDelivery).values(fence=WebhookDelivery.fence + _FENCES_SKIPPED))
    session.execute(delete(Worker))


def count_jobs(session: Session) -> int:
    """How many jobs there are."""
    return session.scalars(select(func.count()).select_from(Job)).one()


def _named_files(connection: Connection) -> Sequence[NamedFile]:
    """Every content once, ascending; not those of jobs whose files expired."""
    columns = (Artifact.sha256, Artifact.bytes, Artifact.job_id, Artifact.fence, Artifact.path)
    rows = select(*columns).join(Job).where(Job.expired_at.is_(None)).ext(distinct_on(Artifact.sha256))
    return [NamedFile(*row) for row in connection.execute(rows.order_by(Artifact.sha256))]
