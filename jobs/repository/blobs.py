"""SQL of garbage collection: the contents that rows name, the schedule, and the lock for one collector at a time."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, Engine, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from jobs.repository.models import Artifact, Chore, Job

_LOCK: Final = 0x51_75_61_6E_74_67_63  # any number that no other lock of the service uses


def named_after(session: Session, sha256: str, limit: int, *, grace_seconds: float) -> Sequence[str]:
    """Return up to ``limit`` contents that rows name and that come after ``sha256``, ascending.

    Rows of a job whose files expired count for ``grace_seconds`` longer, so that downloads that have begun can end.

    Digits come before lower-case letters in every collation, and all digests are equally long, so this is byte order.
    """
    contents = select(Artifact.sha256).join(Job).where(_kept(grace_seconds), Artifact.sha256 > sha256)
    return session.scalars(contents.distinct().order_by(Artifact.sha256).limit(limit)).all()


def named(session: Session, contents: Collection[str], *, grace_seconds: float) -> frozenset[str]:
    """Return those of ``contents`` that rows name now."""
    naming = select(Artifact.sha256).join(Job).where(_kept(grace_seconds), Artifact.sha256.in_(contents))
    return frozenset(session.scalars(naming))


def rows_of(session: Session, sha256: str) -> Sequence[Artifact]:
    """Return the rows that name one content and whose files have not expired."""
    rows = select(Artifact).join(Job).where(Job.expired_at.is_(None), Artifact.sha256 == sha256)
    return session.scalars(rows.order_by(Artifact.id)).all()


def jobs_with_files(session: Session, job_ids: Collection[str], *, grace_seconds: float) -> frozenset[str]:
    """Return those of ``job_ids`` whose files rows name."""
    naming = select(Artifact.job_id).join(Job).where(_kept(grace_seconds), Artifact.job_id.in_(job_ids))
    return frozenset(session.scalars(naming))


def _kept(grace_seconds: float) -> ColumnElement[bool]:
    # Jobs whose files did not expire, or expired within the grace period.
    since = func.statement_timestamp() - timedelta(seconds=grace_seconds)
    return or_(Job.expired_at.is_(None), Job.expired_at >= since)


def claim_chore(session: Session, chore: str, every_seconds: float) -> bool:
    """Begin a chore, and return True, unless another process has begun it within ``every_seconds``."""
    now = func.clock_timestamp()
    begun = upsert(Chore).values(name=chore, begun_at=now)
    due = Chore.begun_at <= now - timedelta(seconds=every_seconds)
    # One statement decides: of two processes at the same time only one changes the row.
    begin = begun.on_conflict_do_update(index_elements=["name"], set_={"begun_at": now}, where=due)
    return session.scalars(begin.returning(Chore.name)).one_or_none() is not None


@contextmanager
def collecting_alone(engine: Engine) -> Iterator[bool]:
    """Hold the lock of garbage collection for the block; yield False if another process has it.

    The lock is outside any transaction, because the server ends idle transactions. It ends with its connection.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        taken = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}))
        try:
            yield taken
        finally:
            if taken:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
