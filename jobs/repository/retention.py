"""SQL of retention: removing what is older than its retention time, in batches that never wait for a lock.

Each batch first locks its jobs, without those that another transaction has locked, and then reads them again. A
publication or a retry that was committed in between is seen by the second reading. One that comes later waits for the
end of this short transaction, and sees its result.

Batches go through jobs in the order of their ends, and each continues where the one before stopped (``reached``,
``since``). So finished work is not read again, and skipped jobs are left to the next round.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from jobs.kit.states import TERMINAL, JobStatus, PublicationStatus
from jobs.repository import webhook_queue
from jobs.repository.models import Artifact, IdempotencyKey, Job, JobEvent, Publication, WebhookDelivery

_UNFINISHED: Final = (PublicationStatus.QUEUED, PublicationStatus.RUNNING)
_JOBS_AT_ONCE: Final = 100


@dataclass(frozen=True)
class Deleted:
    """What one batch removed, or could remove. ``bytes``: of the files that rows name.

    ``reached``: the next batch begins with jobs that ended at this time.
    """

    rows: int
    bytes: int = 0
    reached: datetime | None = field(default=None, compare=False)


def delete_jobs(session: Session, older_than_seconds: float, limit: int, since: datetime | None) -> Deleted:
    """Delete finished jobs and everything that belongs to them, the earliest ended first."""
    going = _lock(session, _jobs(older_than_seconds, since), limit)
    # Counted before the DELETE, which also removes the rows of the files.
    deleted = Deleted(len(going), _file_bytes(session, going), _latest(going))
    session.execute(delete(Job).where(Job.id.in_(going)))
    return deleted


def count_jobs(session: Session, older_than_seconds: float) -> Deleted:
    """Count the finished jobs that would be deleted."""
    return _count(session, _jobs(older_than_seconds))


def expire_files(session: Session, older_than_seconds: float, limit: int, since: datetime | None) -> Deleted:
    """Mark jobs as expired. Their artifact rows stay as a record, but are no longer references."""
    going = _lock(session, _jobs_with_files(older_than_seconds, since), limit)
    expired = {"expired_at": func.clock_timestamp(), "version": Job.version + 1}
    session.execute(update(Job).where(Job.id.in_(going)).values(expired))
    return Deleted(len(going), _file_bytes(session, going), _latest(going))


def count_files(session: Session, older_than_seconds: float) -> Deleted:
    """Count the jobs whose files would expire."""
    return _count(session, _jobs_with_files(older_than_seconds))


def delete_events(session: Session, older_than_seconds: float, limit: int, since: datetime | None) -> Deleted:
    """Delete events of finished jobs except the last, ``done``, so that a client still sees that the job is over."""
    held = _lock(session, _jobs_with_events(older_than_seconds, since), _JOBS_AT_ONCE)
    superfluous = _events().where(Job.id.in_(held)).limit(limit)
    event = tuple_(JobEvent.job_id, JobEvent.id)
    deleted = session.scalars(delete(JobEvent).where(event.in_(superfluous)).returning(JobEvent.id)).all()
    # The next batch begins at the first job again: it may have more events than one batch deletes.
    return Deleted(len(deleted), reached=min(held.values(), default=None))


def count_events(session: Session, older_than_seconds: float) -> Deleted:
    """Count the events that would be deleted."""
    events = _events().where(_finished(older_than_seconds))
    return Deleted(session.scalars(select(func.count()).select_from(events.subquery())).one())


def delete_keys(session: Session, older_than_seconds: float, limit: int, since: datetime | None = None) -> Deleted:
    """Delete answers for an Idempotency-Key whose own time of expiry has passed."""
    # Each answer has its own time of expiry. The two parameters are those of every rule.
    del older_than_seconds, since
    key = tuple_(IdempotencyKey.tenant, IdempotencyKey.endpoint, IdempotencyKey.key)
    over = _keys().limit(limit).with_for_update(skip_locked=True)
    statement = delete(IdempotencyKey).where(key.in_(over)).returning(IdempotencyKey.key)
    return Deleted(len(session.scalars(statement).all()))


def count_keys(session: Session, older_than_seconds: float) -> Deleted:
    """Count the answers that would be deleted."""
    # See ``delete_keys``.
    del older_than_seconds
    return Deleted(session.scalars(select(func.count()).select_from(_keys().subquery())).one())


def delete_deliveries(
    session: Session, older_than_seconds: float, limit: int, since: datetime | None = None
) -> Deleted:
    """Delete webhook deliveries that have ended."""
    del since
    return Deleted(webhook_queue.purge(session, older_than_seconds, limit))


def count_deliveries(session: Session, older_than_seconds: float) -> Deleted:
    """Count the deliveries that would be deleted."""
    before = func.statement_timestamp() - timedelta(seconds=older_than_seconds)
    ended = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.finished_at < before)
    return Deleted(session.scalars(ended).one())


def _finished(older_than_seconds: float) -> ColumnElement[bool]:
    before = func.statement_timestamp() - timedelta(seconds=older_than_seconds)
    return and_(Job.status.in_(TERMINAL), Job.finished_at < before)


def _jobs(older_than_seconds: float, since: datetime | None = None) -> Select[str, datetime | None]:
    """Select jobs without a publication that waits or runs, which would need the files."""
    needed = select(Publication.id).where(Publication.job_id == Job.id, Publication.status.in_(_UNFINISHED))
    return _ended(older_than_seconds, since).where(~needed.exists())


def _jobs_with_files(older_than_seconds: float, since: datetime | None = None) -> Select[str, datetime | None]:
    has_files = select(Artifact.id).where(Artifact.job_id == Job.id).exists()
    unexpired = (Job.status == JobStatus.SUCCEEDED, Job.expired_at.is_(None), has_files)
    return _jobs(older_than_seconds, since).where(*unexpired)


def _jobs_with_events(older_than_seconds: float, since: datetime | None = None) -> Select[str, datetime | None]:
    more = select(JobEvent.id).where(JobEvent.job_id == Job.id, JobEvent.id < Job.last_event_id).exists()
    return _ended(older_than_seconds, since).where(more)


def _ended(older_than_seconds: float, since: datetime | None) -> Select[str, datetime | None]:
    jobs = select(Job.id, Job.finished_at).where(_finished(older_than_seconds)).order_by(Job.finished_at)
    return jobs if since is None else jobs.where(Job.finished_at >= since)


def _events() -> Select[str, int]:
    """Select (job, id) of every event except the last one of its job."""
    return select(JobEvent.job_id, JobEvent.id).join(Job).where(JobEvent.id < Job.last_event_id)


def _keys() -> Select[str, str, str]:
    now = func.statement_timestamp()
    return select(IdempotencyKey.tenant, IdempotencyKey.endpoint, IdempotencyKey.key).where(
        IdempotencyKey.expires_at < now
    )


def _lock(session: Session, jobs: Select[str, datetime | None], limit: int) -> dict[str, datetime]:
    """Lock up to ``limit`` of ``jobs``. Return those that still match after the lock, with the time of their end."""
    # A statement sees the rows of its own beginning, so the condition is checked again with the locks held.
    locked = session.scalars(jobs.limit(limit).with_for_update(skip_locked=True, of=Job)).all()
    return {job: ended for job, ended in session.execute(jobs.where(Job.id.in_(locked))) if ended is not None}


def _latest(jobs: Mapping[str, datetime]) -> datetime | None:
    return max(jobs.values(), default=None)


def _file_bytes(session: Session, job_ids: Collection[str]) -> int:
    size: Any = select(func.coalesce(func.sum(Artifact.bytes), 0)).where(Artifact.job_id.in_(job_ids))
    return int(session.scalars(size).one())


def _count(session: Session, jobs: Select[str, datetime | None]) -> Deleted:
    # A count needs no order.
    found = jobs.order_by(None).subquery()
    rows = session.scalars(select(func.count()).select_from(found)).one()
    size: Any = select(func.coalesce(func.sum(Artifact.bytes), 0)).where(Artifact.job_id.in_(select(found.c.id)))
    return Deleted(rows, int(session.scalars(size).one()))
