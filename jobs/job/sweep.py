"""Repairing what dead workers leave. Any worker may sweep at any time; rows that another has locked are skipped."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from jobs.kit.attempt_limit import is_last_attempt
from jobs.kit.errors import JobProblem, crash_loop, queue_deadline, run_deadline
from jobs.kit.leases import ClaimKey
from jobs.kit.states import JobStatus
from jobs.publications.sweep import sweep_publications
from jobs.repository import leases, turns
from jobs.repository.changes import move_job
from jobs.repository.database import Database
from jobs.repository.models import Job
from jobs.settings import Settings

MAX_NUDGES: Final = 8


@dataclass(frozen=True)
class Swept:
    """What a sweep did. ``nudges``: how many queued rows need a nudge now (at most 8).

    ``publications``: how many publications had an expired lease or an orphaned claim.
    """

    requeued: int = 0
    failed: int = 0
    cancelled: int = 0
    nudges: int = 0
    publications: int = 0


def sweep(database: Database, settings: Settings, orphans: Collection[ClaimKey] = ()) -> Swept:
    """Settle expired leases, orphans and deadlines, then choose queued rows to nudge for. Raises: Unavailable."""
    with database.transaction() as session:
        outcomes = list(_settle(session, settings.lease_seconds, orphans))
        publications = sweep_publications(session, orphans)
        leases.purge_expired_keys(session)
    # Separate transactions: locks are held for a short time, and a failure keeps the repairs before it.
    with database.transaction() as session:
        turns.tidy(session)
    with database.transaction() as session:
        nudges = leases.mark_nudged(session, MAX_NUDGES, quiet_seconds=settings.sweep_seconds)
    return Swept(
        requeued=outcomes.count(JobStatus.QUEUED),
        failed=outcomes.count(JobStatus.FAILED),
        cancelled=outcomes.count(JobStatus.CANCELLED),
        nudges=nudges,
        publications=publications,
    )


def _settle(session: Session, grace_seconds: float, orphans: Collection[ClaimKey]) -> Iterator[JobStatus]:
    """Repair rows, and yield the new status of each."""
    for job, deadline_exceeded in leases.lock_expired(session, orphans):
        reason = "crash" if (job.id, job.fence) in orphans else "lease_expired"
        yield _settle_expired(session, job, deadline_exceeded, reason)
    # A worker ends such a run itself. The sweep does it a lease later, for a worker that does not.
    for job, _ in leases.lock_overdue_runs(session, grace_seconds):
        yield _fail(session, job, run_deadline(job.max_run_seconds))
    for job, _ in leases.lock_overdue_queued(session):
        yield _fail(session, job, queue_deadline(job.max_queue_seconds))


def _settle_expired(session: Session, job: Job, deadline_exceeded: bool, reason: str) -> JobStatus:
    if job.status == JobStatus.CANCELLING:
        move_job(session, JobStatus.CANCELLED, Job.id == job.id)
        return JobStatus.CANCELLED
    # Before the attempts: a job without time left could not use another attempt.
    if deadline_exceeded:
        return _fail(session, job, run_deadline(job.max_run_seconds))
    if is_last_attempt(job):
        return _fail(session, job, crash_loop(job.attempt))
    leases.requeue(session, Job.id == job.id, delay_seconds=0.0, counts=True, reason=reason)
    return JobStatus.QUEUED


def _fail(session: Session, job: Job, problem: JobProblem) -> JobStatus:
    move_job(session, JobStatus.FAILED, Job.id == job.id, values={"error": problem.as_json(job.id)}, code=problem.code)
    return JobStatus.FAILED
