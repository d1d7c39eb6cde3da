"""SQL of retention: what of finished jobs is older than the operator keeps it, in batches that never wait.

Each batch locks the jobs it is about first, passing over those that somebody else has locked, and looks again once it
has them: a publication or a retry that was committed in between is then seen, and one that comes later waits for the
end of this short transaction, and finds what it left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from jobs.models import Artifact, IdempotencyKey, Job, JobEvent, Publication, WebhookDelivery
from jobs.repository import webhook_queue
from jobs.states import TERMINAL, JobStatus, PublicationStatus

_UNFINISHED: Final = (PublicationStatus.QUEUED, PublicationStatus.RUNNING)


@dataclass(frozen=True)
class Gone:
    """What one batch removed, or what there is to remove. ``bytes``: of the files that rows name."""

    rows: int
    bytes: int = 0


def delete_jobs(session: Session, older_than_seconds: float, limit: int) -> Gone:
    """Finished jobs with all that hangs on them, the longest finished first."""
    going = _lock(session, _jobs(older_than_seconds), limit)
    gone = Gone(len(going), _file_bytes(session, going))
    session.execute(delete(Job).where(Job.id.in_(going)))
    return gone


def count_jobs(session: Session, older_than_seconds: float) -> Gone:
    """Finished jobs that are to go."""
    return _count(session, _jobs(older_than_seconds))


def expire_files(session: Session, older_than_seconds: float, limit: int) -> Gone:
    """Mark jobs as expired. Their artifact rows stay, as a record of what there was, and name nothing any more."""
    going = _lock(session, _jobs_with_files(older_than_seconds), limit)
    expired = {"expired_at": func.clock_timestamp(), "version": Job.version + 1}
    session.execute(update(Job).where(Job.id.in_(going)).values(expired))
    return Gone(len(going), _file_bytes(session, going))


def count_files(session: Session, older_than_seconds: float) -> Gone:
    """Jobs whose files are to expire."""
    return _count(session, _jobs_with_files(older_than_seconds))


def delete_events(session: Session, older_than_seconds: float, limit: int) -> Gone:
    """Events of finished jobs, but the last of each, ``done``: who follows such a job still hears that it is over."""
    held = _lock(session, _jobs_with_events(older_than_seconds), limit)
    superfluous = _events().where(Job.id.in_(held)).limit(limit)
    event = tuple_(JobEvent.job_id, JobEvent.id)
    deleted = session.scalars(delete(JobEvent).where(event.in_(superfluous)).returning(JobEvent.id)).all()
    return Gone(len(deleted))


def count_events(session: Session, older_than_seconds: float) -> Gone:
    """Events that are to go."""
    events = _events().where(_finished(older_than_seconds))
    return Gone(session.scalars(select(func.count()).select_from(events.subquery())).one())


def delete_keys(session: Session, older_than_seconds: float, limit: int) -> Gone:
    """Answers kept for an Idempotency-Key that are past their time, which each of them carries."""
    del older_than_seconds
    key = tuple_(IdempotencyKey.tenant, IdempotencyKey.endpoint, IdempotencyKey.key)
    over = _keys().limit(limit).with_for_update(skip_locked=True)
    statement = delete(IdempotencyKey).where(key.in_(over)).returning(IdempotencyKey.key)
    return Gone(len(session.scalars(statement).all()))


def count_keys(session: Session, older_than_seconds: float) -> Gone:
    """Answers that are to go."""
    del older_than_seconds
    return Gone(session.scalars(select(func.count()).select_from(_keys().subquery())).one())


def delete_deliveries(session: Session, older_than_seconds: float, limit: int) -> Gone:
    """Webhook deliveries that have ended, in the batches of those who deliver, who remove some as well."""
    del limit
    return Gone(webhook_queue.purge(session, older_than_seconds))


def count_deliveries(session: Session, older_than_seconds: float) -> Gone:
    """Deliveries that are to go."""
    before = func.statement_timestamp() - timedelta(seconds=older_than_seconds)
    ended = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.finished_at < before)
    return Gone(session.scalars(ended).one())


def _finished(older_than_seconds: float) -> ColumnElement[bool]:
    before = func.statement_timestamp() - timedelta(seconds=older_than_seconds)
    return and_(Job.status.in_(TERMINAL), Job.finished_at < before)


def _jobs(older_than_seconds: float) -> Select[str]:
    """Those that nothing holds back: a publication that waits or runs needs the files."""
    needed = select(Publication.id).where(Publication.job_id == Job.id, Publication.status.in_(_UNFINISHED))
    return select(Job.id).where(_finished(older_than_seconds), ~needed.exists()).order_by(Job.finished_at)


def _jobs_with_files(older_than_seconds: float) -> Select[str]:
    has_files = select(Artifact.id).where(Artifact.job_id == Job.id).exists()
    unexpired = (Job.status == JobStatus.SUCCEEDED, Job.expired_at.is_(None), has_files)
    return _jobs(older_than_seconds).where(*unexpired)


def _jobs_with_events(older_than_seconds: float) -> Select[str]:
    more = select(JobEvent.id).where(JobEvent.job_id == Job.id, JobEvent.id < Job.last_event_id).exists()
    return select(Job.id).where(_finished(older_than_seconds), more).order_by(Job.finished_at)


def _events() -> Select[str, int]:
    """(job, id) of every event but the last of its job."""
    return select(JobEvent.job_id, JobEvent.id).join(Job).where(JobEvent.id < Job.last_event_id)


def _keys() -> Select[str, str, str]:
    now = func.statement_timestamp()
    return select(IdempotencyKey.tenant, IdempotencyKey.endpoint, IdempotencyKey.key).where(
        IdempotencyKey.expires_at < now
    )


def _lock(session: Session, jobs: Select[str], limit: int) -> Sequence[str]:
    """Up to ``limit`` of ``jobs``, locked, that are still among them after the lock was had."""
    locked = session.scalars(jobs.limit(limit).with_for_update(skip_locked=True, of=Job)).all()
    return session.scalars(jobs.where(Job.id.in_(locked))).all()


def _file_bytes(session: Session, job_ids: Sequence[str]) -> int:
    size: Any = select(func.coalesce(func.sum(Artifact.bytes), 0)).where(Artifact.job_id.in_(job_ids))
    return int(session.scalars(size).one())


def _count(session: Session, jobs: Select[str]) -> Gone:
    found = jobs.order_by(None).subquery()
    rows = session.scalars(select(func.count()).select_from(found)).one()
    size: Any = select(func.coalesce(func.sum(Artifact.bytes), 0)).where(Artifact.job_id.in_(select(found.c.id)))
    return Gone(rows, int(session.scalars(size).one()))
