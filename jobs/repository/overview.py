"""SQL of the operator's view: across tenants, and of the workers."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.models import Job, Worker


def count_by_status(session: Session) -> dict[str, int]:
    """How many jobs have each status; statuses without a job are left out."""
    rows = session.execute(select(Job.status, func.count().label("jobs")).group_by(Job.status))
    return {row.status: row.jobs for row in rows}


def workers_since(session: Session, seconds: float) -> Sequence[Worker]:
    """Workers whose last heartbeat is at most ``seconds`` old by the database's clock, by name and start."""
    alive = Worker.heartbeat_at > func.clock_timestamp() - timedelta(seconds=seconds)
    return session.scalars(select(Worker).where(alive).order_by(Worker.hostname, Worker.started_at)).all()
