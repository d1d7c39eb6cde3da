"""SQL of the lease: who runs a job, until when, and whether its writes still count, by the database's clock."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Double, ScalarSelect, Select, cast, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from jobs.kit.leases import ClaimKey
from jobs.kit.states import HELD, RETRIABLE, JobStatus
from jobs.repository import retention, turns
from jobs.repository.changes import NewEvent, move_job, update_job
from jobs.repository.clock import now
from jobs.repository.models import Artifact, Job, JobLayer, Worker

# A sweep repairs this many rows at most, so that its transaction stays short; the next sweep takes the others.
_SWEEP_ROWS: Final = 100
_PURGED_KEYS: Final = 500


def _ran_seconds() -> ColumnElement[Any]:
    """Return the seconds that a job has run, over all attempts; a lost attempt counts until the end of its lease."""
    end = func.least(now(), func.coalesce(Job.lease_until, now()))
    current = func.extract("epoch", end - Job.attempt_started_at)
    return Job.ran_seconds + func.greatest(func.coalesce(current, 0), 0)


def _deadline_exceeded(grace_seconds: float = 0.0) -> ColumnElement[bool]:
    return _ran_seconds() > Job.max_run_seconds + grace_seconds


def fenced(job_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    """Return conditions that are true only while the claim with this fence holds the row."""
    return (Job.id == job_id, Job.fence == fence, Job.status.in_(HELD))


def claim_oldest(session: Session, owner: str, lease_seconds: float) -> Job | None:
    """Start the next attempt of the oldest job of the tenant whose turn it is (see :mod:`jobs.repository.turns`)."""
    # The second query finds a job where all turns are locked or no turn has a job (see ``jobs.repository.turns``).
    job = _start(session, turns.next_job(), owner, lease_seconds) or _start(
        session, turns.any_job(), owner, lease_seconds
    )
    if job is not None:
        # Also after ``any_job``: the tenant was served, whichever query found the job.
        turns.take_turn(session, job.tenant)
        session.execute(update(Worker).where(Worker.owner == owner).values(last_claim_at=now()))
    return job


def _start(session: Session, chosen: ScalarSelect[str], owner: str, lease_seconds: float) -> Job | None:
    return move_job(
        session,
        JobStatus.RUNNING,
        Job.id == chosen,
        values={
            "fence": Job.fence + 1,
            "attempt": Job.attempt + 1,
            "owner": owner,
            "lease_until": now() + timedelta(seconds=lease_seconds),
            "heartbeat_at": now(),
            "started_at": func.coalesce(Job.started_at, func.clock_timestamp()),
            # The real time, not the statement's: of two claims at once, the one that chose first must be the earlier.
            "attempt_started_at": func.clock_timestamp(),
            "progress": {},
            "stages": [],
        },
    )


def load_spec(session: Session, job_id: str) -> dict[str, Any]:
    """Return the stored specification."""
    return session.scalars(select(Job.spec).where(Job.id == job_id)).one()


def renew(session: Session, job_id: str, fence: int, lease_seconds: float) -> tuple[Job, float] | None:
    """Renew a lease. Return the row and the seconds that are left of its time; None when the claim is lost."""
    job = update_job(
        session,
        *fenced(job_id, fence),
        values={"lease_until": now() + timedelta(seconds=lease_seconds), "heartbeat_at": now()},
    )
    if job is None:
        return None
    left = select(cast(Job.max_run_seconds - _ran_seconds(), Double)).where(Job.id == job_id)
    return job, session.scalars(left).one()


def update_fenced(
    session: Session, job_id: str, fence: int, values: Mapping[str, Any], events: Sequence[NewEvent] = ()
) -> Job | None:
    """Make any other write of a worker; None when the claim is lost."""
    return update_job(session, *fenced(job_id, fence), values=values, events=events)


def lock_stages(session: Session, job_id: str, fence: int) -> list[dict[str, Any]] | None:
    """Return the stage lines, locked until the transaction ends; None when the claim is lost."""
    return session.scalars(select(Job.stages).where(*fenced(job_id, fence)).with_for_update()).one_or_none()


def merge_layers(session: Session, job_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert layer rows, and replace those with the same name."""
    if not rows:
        return
    # ``excluded`` is PostgreSQL's name for the row that was to be inserted.
    statement = upsert(JobLayer).values([{"job_id": job_id, **row} for row in rows])
    replaced = {
        column.name: statement.excluded[column.name] for column in JobLayer.__table__.columns if not column.primary_key
    }
    session.execute(statement.on_conflict_do_update(index_elements=["job_id", "name"], set_=replaced))


def replace_layers(session: Session, job_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace all layer rows of a job by these."""
    session.execute(delete(JobLayer).where(JobLayer.job_id == job_id))
    merge_layers(session, job_id, rows)


def add_artifacts(session: Session, artifacts: Sequence[Artifact]) -> None:
    """Insert and flush the files of a manifest."""
    session.add_all(artifacts)
    session.flush()


def requeue(
    session: Session,
    *where: ColumnElement[bool],
    delay_seconds: float,
    counts: bool,
    reason: str,
    values: Mapping[str, Any] | None = None,
) -> Job | None:
    """Return a job to the queue, with ``values`` changed; an attempt that does not count is subtracted again."""
    return move_job(
        session,
        JobStatus.QUEUED,
        Job.status == JobStatus.RUNNING,  # only a retry queues a job that is over
        *where,
        values={
            "attempt": Job.attempt if counts else Job.attempt - 1,
            "ran_seconds": _ran_seconds(),
            "attempt_started_at": None,
            "queued_at": now(),
            "available_at": now() + timedelta(seconds=delay_seconds),
            "owner": None,
            "lease_until": None,
            "nudged_at": None,
            **(values or {}),
        },
        reason=reason,
    )


def lock_expired(session: Session, orphans: Collection[ClaimKey]) -> Sequence[tuple[Job, bool]]:
    """Lock held jobs with an expired lease or an orphaned claim; with each, whether its run time is used up."""
    over = (Job.lease_until < now()) | tuple_(Job.id, Job.fence).in_(orphans)
    return _locked(session, select(Job, _deadline_exceeded()).where(Job.status.in_(HELD), over))


def lock_overdue_runs(session: Session, grace_seconds: float) -> Sequence[tuple[Job, bool]]:
    """Lock running jobs whose worker renews the lease but has not ended them in time."""
    overdue = _deadline_exceeded(grace_seconds)
    return _locked(session, select(Job, overdue).where(Job.status == JobStatus.RUNNING, overdue))


def lock_overdue_queued(session: Session) -> Sequence[tuple[Job, bool]]:
    """Lock queued jobs that waited longer than they were allowed to."""
    overdue = turns.waited_too_long()
    return _locked(session, select(Job, overdue).where(Job.status == JobStatus.QUEUED, overdue))


def mark_nudged(session: Session, limit: int, quiet_seconds: float) -> int:
    """Mark up to ``limit`` queued rows without a recent nudge, and return how many.

    A nudge names no job, so any rows will do. The newest rows are marked: a claim skips a locked row, and among the
    oldest rows that would let a later job overtake an earlier one.
    """
    due = (
        select(Job.id)
        .where(
            Job.status == JobStatus.QUEUED,
            Job.available_at <= now(),
            func.coalesce(Job.nudged_at < now() - timedelta(seconds=quiet_seconds), True),
        )
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")  # evaluated once in every plan
    )
    marked = update(Job).where(Job.id.in_(select(due.c.id))).values(nudged_at=now()).returning(Job.id)
    return len(session.scalars(marked.execution_options(synchronize_session=False)).all())


def purge_expired_keys(session: Session) -> None:
    """Delete expired idempotency keys, a batch in each sweep, and workers without a heartbeat for a day."""
    retention.delete_keys(session, 0.0, _PURGED_KEYS)
    session.execute(delete(Worker).where(Worker.heartbeat_at < now() - timedelta(days=1)))


def lock_finished(session: Session, job_ids: Collection[str], retention_seconds: float) -> frozenset[str]:
    """Lock and return those of ``job_ids`` that no retry will continue: succeeded, or ended long enough ago.

    Ids without a job are included; jobs that another transaction has locked are not.
    """
    if not job_ids:
        return frozenset()
    past_retention = Job.finished_at < now() - timedelta(seconds=retention_seconds)
    finished = (Job.status == JobStatus.SUCCEEDED) | (Job.status.in_(RETRIABLE) & past_retention)
    # Ids without a row are of deleted jobs, whose files nothing needs.
    there = frozenset(session.scalars(select(Job.id).where(Job.id.in_(job_ids))))
    locked = select(Job.id).where(Job.id.in_(there), finished).with_for_update(skip_locked=True)
    return (frozenset(job_ids) - there) | frozenset(session.scalars(locked))


def beat_worker(session: Session, owner: str, hostname: str, pid: int, device: str) -> None:
    """Insert or renew a worker's row."""
    statement = upsert(Worker).values(owner=owner, hostname=hostname, pid=pid, device=device)
    session.execute(statement.on_conflict_do_update(index_elements=["owner"], set_={"heartbeat_at": now()}))


def _locked(session: Session, statement: Select[Job, bool]) -> Sequence[tuple[Job, bool]]:
    # Rows that another sweep or a claim has locked are skipped: that process takes care of them.
    limited = statement.limit(_SWEEP_ROWS).with_for_update(skip_locked=True, of=Job)
    return [(row[0], row[1]) for row in session.execute(limited)]
