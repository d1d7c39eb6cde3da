"""SQL of the API side: find, list and count jobs. Every query is limited to a tenant."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Double, cast, delete, false, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.kit.states import RETRIABLE, TERMINAL, JobStatus
from jobs.repository.changes import move_job
from jobs.repository.models import Artifact, Job, JobEvent, JobLayer
from quant_engine.interface.stages import RESOLVE


def find(session: Session, tenant: str, job_id: str) -> Job | None:
    """Return the job, without its large columns."""
    return session.scalars(select(Job).where(Job.tenant == tenant, Job.id == job_id)).one_or_none()


def lock(session: Session, tenant: str, job_id: str) -> Job | None:
    """Return the job, locked until the transaction ends."""
    statement = select(Job).where(Job.tenant == tenant, Job.id == job_id).with_for_update()
    return session.scalars(statement).one_or_none()


def lock_for_share(session: Session, job_id: str) -> Job | None:
    """Return the job as it is now. Until the transaction ends it can not expire or be deleted.

    The lock is FOR KEY SHARE, so other writes of the row, such as a worker's heartbeat, do not wait for it.
    """
    statement = select(Job).where(Job.id == job_id).with_for_update(read=True, key_share=True)
    # The session may have read the row before it was locked.
    return session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()


def request_cancel(session: Session, job: Job) -> Job | None:
    """Cancel a locked job: cancelled at once if it waits, cancelling if it runs, None if it is over."""
    target = JobStatus.CANCELLED if job.status == JobStatus.QUEUED else JobStatus.CANCELLING
    return move_job(session, target, Job.id == job.id, values={"cancel_requested_at": func.statement_timestamp()})


def restart(
    session: Session, job: Job, *, attempts: int, from_stage: str | None, origin: Mapping[str, str | None]
) -> Job | None:
    """Queue a locked job that failed or was cancelled, with ``attempts`` more attempts; None in any other state.

    The numbers of its attempts, its fence and its events continue. ``origin`` has the columns that describe the
    request.
    """
    now = func.statement_timestamp()
    values: dict[str, Any] = {
        **origin,
        "retries": Job.retries + 1,
        "retry_from": from_stage,
        "max_attempts": Job.attempt + attempts,
        "low_memory": False,
        "error": None,
        "progress": {},
        "stages": [],
        "cancel_requested_at": None,
        "finished_at": None,
        "expired_at": None,
        "ran_seconds": 0.0,
        "attempt_started_at": None,
        "queued_at": now,
        "available_at": now,
        "nudged_at": None,
    }
    # A retry from the first stage looks the model's revision up again.
    if from_stage == RESOLVE.name:
        values["resolved_revision"] = None
    event_data = {"reason": "retry"} if from_stage is None else {"reason": "retry", "from_stage": from_stage}
    return move_job(session, JobStatus.QUEUED, Job.id == job.id, Job.status.in_(RETRIABLE), values=values, **event_data)


def find_report(session: Session, tenant: str, job_id: str) -> tuple[str, dict[str, Any] | None] | None:
    """Return (status, report) of the job."""
    row = session.execute(select(Job.status, Job.report).where(Job.tenant == tenant, Job.id == job_id)).one_or_none()
    return None if row is None else (row.status, row.report)


def page(
    session: Session,
    tenant: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None,
    filters: Mapping[str, Any],
    labels: Mapping[str, str],
) -> Sequence[Job]:
    """Return up to ``limit`` jobs, newest first, that come after the cursor. ``filters``: equalities by attribute."""
    statement = select(Job).where(Job.tenant == tenant).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    for attribute, value in filters.items():
        statement = statement.where(getattr(Job, attribute) == value)
    if labels:
        statement = statement.where(Job.labels.contains(dict(labels)))
    if after is not None:
        statement = statement.where(tuple_(Job.created_at, Job.id) < after)
    return session.scalars(statement).all()


def delete_terminal(session: Session, tenant: str, job_id: str) -> bool:
    """Delete the job and everything that belongs to it, if it is terminal."""
    where = (Job.tenant == tenant, Job.id == job_id, Job.status.in_(TERMINAL))
    return session.scalars(delete(Job).where(*where).returning(Job.id)).one_or_none() is not None


def events_after(session: Session, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    """Return events with a larger id, oldest first."""
    where = (JobEvent.job_id == job_id, JobEvent.id > after)
    return session.scalars(select(JobEvent).where(*where).order_by(JobEvent.id).limit(limit)).all()


def layers_after(
    session: Session,
    job_id: str,
    *,
    column: InstrumentedAttribute[Any],
    descending: bool,
    after: tuple[float | None, str] | None,
    limit: int,
) -> Sequence[JobLayer]:
    """Return layers in the order of ``column`` (null last, then by name) that come after the cursor."""
    # Cursors have floats, so integer columns are compared as floats too.
    number = cast(column, Double)
    order = number.desc() if descending else number.asc()
    statement = (
        select(JobLayer).where(JobLayer.job_id == job_id).order_by(column.is_(None), order, JobLayer.name).limit(limit)
    )
    if after is not None:
        statement = statement.where(_after_layer(number, descending, *after))
    return session.scalars(statement).all()


def _after_layer(column: ColumnElement[float], descending: bool, value: float | None, name: str) -> ColumnElement[bool]:
    if value is None:
        # The cursor is at a null already, so only nulls follow.
        return column.is_(None) & (JobLayer.name > name)
    beyond = column < value if descending else column > value
    # A comparison with null is null in SQL, which ``coalesce`` makes false.
    return func.coalesce(beyond, false()) | ((column == value) & (JobLayer.name > name)) | column.is_(None)


def artifacts_of(session: Session, job_id: str) -> Sequence[Artifact]:
    """Return the job's artifacts, by path."""
    return session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.path)).all()


def find_artifact(session: Session, tenant: str, artifact_id: str) -> Artifact | None:
    """Return one artifact of one of the tenant's jobs."""
    statement = select(Artifact).join(Job, Job.id == Artifact.job_id)
    return session.scalars(statement.where(Job.tenant == tenant, Artifact.id == artifact_id)).one_or_none()
