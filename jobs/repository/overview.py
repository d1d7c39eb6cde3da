"""SQL of the state of the installation, across tenants and workers. Frequent queries are served by an index."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.kit.states import JobStatus
from jobs.kit.views import QueueHealth
from jobs.repository.models import Job, Publication, WebhookDelivery, Worker
from jobs.repository.turns import is_held, is_queued

Counts = dict[str, int]


def count_unfinished(session: Session) -> Counts:
    """Count the jobs in each status that is not final; statuses without a job are left out."""
    # One query for each partial index: a combined query would read every job of the table.
    queued = session.scalars(select(func.count()).where(is_queued())).one()
    held = _counts(session, Job.status, is_held())
    return {JobStatus.QUEUED.value: queued, **held} if queued else held


def count_finished(session: Session) -> Counts:
    """Count the jobs in each final status. Reads all of them."""
    return _counts(session, Job.status, Job.finished_at.is_not(None))


def count_publications(session: Session) -> Counts:
    """Count the publications in each status. Reads all of them."""
    return _counts(session, Publication.status)


def count_deliveries(session: Session) -> Counts:
    """Count the webhook deliveries in each status. Reads all of them."""
    return _counts(session, WebhookDelivery.status)


def queue_health(session: Session, alive_seconds: float) -> QueueHealth:
    """Return the numbers of the queue and of the workers. A job that waits for its retry is not claimable."""
    now = func.clock_timestamp()
    # The delay of a retry does not count as waiting for a worker.
    claimable_since = func.greatest(Job.queued_at, Job.available_at)
    queue = session.execute(
        select(
            func.count(),
            _seconds(now - func.min(Job.queued_at)),
            _seconds(now - func.min(claimable_since).filter(Job.available_at <= now)),
        ).where(is_queued())
    ).one()
    workers = session.execute(
        select(
            func.count().filter(Worker.heartbeat_at > now - timedelta(seconds=alive_seconds)),
            _seconds(now - func.max(Worker.last_claim_at)),
        )
    ).one()
    return QueueHealth(
        queued=queue[0],
        running=session.scalars(select(func.count()).where(is_held())).one(),
        oldest_queued_seconds=queue[1],
        oldest_claimable_seconds=queue[2],
        workers=workers[0],
        seconds_since_claim=workers[1],
    )


def workers_since(session: Session, seconds: float) -> Sequence[Worker]:
    """Return workers with a heartbeat in the last ``seconds`` by the database's clock, by name and start."""
    alive = Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=seconds)
    return session.scalars(select(Worker).where(alive).order_by(Worker.hostname, Worker.started_at)).all()


def busy_owners(session: Session) -> frozenset[str]:
    """Return the owners that hold a job."""
    return frozenset(owner for owner in session.scalars(select(Job.owner).where(is_held())) if owner)


def _counts(session: Session, status: InstrumentedAttribute[str], *where: ColumnElement[bool]) -> Counts:
    rows = session.execute(select(status, func.count().label("rows")).where(*where).group_by(status))
    return {row[0]: row.rows for row in rows}


def _seconds(interval: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.extract("epoch", interval)
