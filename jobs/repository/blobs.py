"""SQL of garbage collection: which contents rows name, whose turn it is, and that only one collects at a time."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, Engine, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from jobs.repository.models import Artifact, Chore, Job

_LOCK: Final = 0x51_75_61_6E_74_67_63  # any number that nothing else here locks


def named_after(session: Session, sha256: str, limit: int, *, grace_seconds: float) -> Sequence[str]:
    """Up to ``limit`` contents that rows name and that come after ``sha256``, ascending.

    The rows of a job whose files expired name nothing any more, ``grace_seconds`` after that: downloads that had begun
    before may end.

    Digits come before lower-case letters in every collation, and all are equally long: this is the order of bytes.
    """
    contents = select(Artifact.sha256).join(Job).where(_kept(grace_seconds), Artifact.sha256 > sha256)
    return session.scalars(contents.distinct().order_by(Artifact.sha256).limit(limit)).all()


def named(session: Session, contents: Collection[str], *, grace_seconds: float) -> frozenset[str]:
    """Those of ``contents`` that rows name now."""
    naming = select(Artifact.sha256).join(Job).where(_kept(grace_seconds), Artifact.sha256.in_(contents))
    return frozenset(session.scalars(naming))


def rows_of(session: Session, sha256: str) -> Sequence[Artifact]:
    """The rows that name one content and whose files have not expired."""
    rows = select(Artifact).join(Job).where(Job.expired_at.is_(None), Artifact.sha256 == sha256)
    return session.scalars(rows.order_by(Artifact.id)).all()


def jobs_with_files(session: Session, job_ids: Collection[str], *, grace_seconds: float) -> frozenset[str]:
    """Those of ``job_ids`` that rows name files of."""
    naming = select(Artifact.job_id).join(Job).where(_kept(grace_seconds), Artifact.job_id.in_(job_ids))
    return frozenset(session.scalars(naming))


def _kept(grace_seconds: float) -> ColumnElement[bool]:
    since = func.statement_timestamp() - timedelta(seconds=grace_seconds)
    return or_(Job.expired_at.is_(None), Job.expired_at >= since)


def claim_chore(session: Session, chore: str, every_seconds: float) -> bool:
    """Whether nobody has begun this chore for so long; then it is begun, here."""
    now = func.clock_timestamp()
    begun = upsert(Chore).values(name=chore, begun_at=now)
    due = Chore.begun_at <= now - timedelta(seconds=every_seconds)
    begin = begun.on_conflict_do_update(index_elements=["name"], set_={"begun_at": now}, where=due)
    return session.scalars(begin.returning(Chore.name)).one_or_none() is not None


@contextmanager
def collecting_alone(engine: Engine) -> Iterator[bool]:
    """A connection that holds the lock of garbage collection for the block; False: another one has it.

    Outside any transaction, which a server would end when it idles; the lock ends with the connection.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        taken = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}))
        try:
            yield taken
        finally:
            if taken:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
