"""The only way to change a job's row: an UPDATE that increments its version and allocates the ids of its events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, insert, update
from sqlalchemy.orm import Session

from jobs.kit.states import JobStatus, sources
from jobs.repository import turns
from jobs.repository.models import Job, JobEvent
from jobs.repository.outbox import announce_job


@dataclass(frozen=True)
class NewEvent:
    """An event to append. Status events also get the row's ``status`` and ``attempt``, unless ``data`` has them."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)


def status_events(target: JobStatus, **data: Any) -> tuple[NewEvent, ...]:
    """Return the events of a change to ``target``: ``job.status``, and ``done`` at the end of a job's life."""
    changed = NewEvent("job.status", data)
    return (changed, NewEvent("done")) if target.is_terminal else (changed,)


def update_job(
    session: Session, *where: ColumnElement[bool], values: Mapping[str, Any], events: Sequence[NewEvent] = ()
) -> Job | None:
    """Change the one row that ``where`` finds, and append ``events`` to its log; None when it finds no row."""
    statement = (
        update(Job)
        .where(*where)
        # The row's own counter gives the ids: the row lock keeps them in order and without gaps.
        .values({"version": Job.version + 1, "last_event_id": Job.last_event_id + len(events), **values})
        .returning(Job)
        # The session may have an older copy of the row, which the returned values replace.
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    job = session.scalars(statement).one_or_none()
    if job is not None:
        _append(session, job, events)
    return job


def move_job(
    session: Session,
    target: JobStatus,
    *where: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
    **event_data: Any,
) -> Job | None:
    """Change the status to ``target``, if the table of transitions allows it from the row's current status.

    Webhook endpoints that subscribe to the event get their messages here, in the same transaction.
    """
    changes: dict[str, Any] = {"status": target.value, **(values or {})}
    if target.is_terminal:
        changes |= {"finished_at": func.clock_timestamp(), "owner": None, "lease_until": None}
    job = update_job(
        session,
        Job.status.in_(sources(target)),
        *where,
        values=changes,
        events=status_events(target, **event_data),
    )
    if job is not None:
        announce_job(session, job)
    return job


def insert_job(session: Session, job: Job) -> None:
    """Insert and flush a new job with its first event, and enroll its tenant in the queue."""
    job.last_event_id = 1
    session.add(job)
    session.flush()
    _append(session, job, status_events(JobStatus.QUEUED))
    turns.enroll(session, job.tenant)
    announce_job(session, job)


def _append(session: Session, job: Job, events: Sequence[NewEvent]) -> None:
    if not events:
        return
    first = job.last_event_id - len(events) + 1
    status = {"status": job.status, "attempt": job.attempt}
    session.execute(
        insert(JobEvent),
        [
            {
                "job_id": job.id,
                "id": first + index,
                "type": event.type,
                "data": {**(status if event.type in {"job.status", "done"} else {}), **event.data},
            }
            for index, event in enumerate(events)
        ],
    )
