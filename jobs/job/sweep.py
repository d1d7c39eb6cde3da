"""Repairing what workers leave behind. Any worker may sweep at any time; rows locked by another are passed over."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

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
    """What a sweep did; ``nudges``: how many queued rows deserve a nudge now (at most 8).

    ``publications``: how many of them had a lease that ran out, or a claim that was orphaned.
    """

    requeued: int = 0
    failed: int = 0
    cancelled: int = 0
    nudges: int = 0
    publications: int = 0


def sweep(database: Database, settings: Settings, orphans: Collection[ClaimKey] = ()) -> Swept:
    """Settle expired leases, orphaned claims and deadlines, then pick queued rows to nudge for. Raises: Unavailable."""
    with database.transaction() as session:
        outcomes = list(_settle(session, settings.lease_seconds, orphans))
        publications = sweep_publications(session, orphans)
        leases.purge_expired_keys(session)
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
    """The new status of every row repaired."""
    for job, deadline_exceeded in leases.lock_expired(session, orphans):
        reason = "crash" if (job.id, job.fence) in orphans else "lease_expired"
        yield _settle_expired(session, job, deadline_exceeded, reason)
    for job, _ in leases.lock_overdue_runs(session, grace_seconds):
        yield _fail(session, job, run_deadline(job.max_run_seconds))
    for job, _ in leases.lock_overdue_queued(session):
        yield _fail(session, job, queue_deadline(job.max_queue_seconds))


def _settle_expired(session: Session, job: Job, deadline_exceeded: bool, reason: str) -> JobStatus:
    if job.status == JobStatus.CANCELLING:
        move_job(session, JobStatus.CANCELLED, Job.id == job.id)
        return JobStatus.CANCELLED
    if deadline_exceeded:
        return _fail(session, job, run_deadline(job.max_run_seconds))
    if job.attempt >= job.max_attempts:
        return _fail(session, job, crash_loop(job.attempt))
    leases.requeue(session, Job.id == job.id, delay_seconds=0.0, counts=True, reason=reason)
    return JobStatus.QUEUED


def _fail(session: Session, job: Job, problem: JobProblem) -> JobStatus:
    move_job(session, JobStatus.FAILED, Job.id == job.id, values={"error": problem.as_json(job.id)}, code=problem.code)
    return JobStatus.FAILED
