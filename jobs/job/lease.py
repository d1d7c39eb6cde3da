"""The worker's operations on a job: claim, heartbeat, fenced writes, publish, release, sweep.

Every write has the claim's fence in its WHERE. A write that changes no row returns False, and the caller must then stop
its runner: another worker, a cancel or a sweep has taken the job. All times are of the database's clock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from jobs.artifacts import ManifestEntry
from jobs.job.claims import Claim, Manifest, ProgressReport, ReleaseReason
from jobs.job.rendering import layer_values
from jobs.job.sweep import Swept, sweep
from jobs.kit.attempt_limit import is_last_attempt
from jobs.kit.errors import JobProblem, crash_loop
from jobs.kit.ids import new_id
from jobs.kit.leases import ClaimKey, HeartbeatResult
from jobs.kit.states import JobStatus, StageStatus
from jobs.kit.storable import storable_json, storable_text
from jobs.publications.queueing import queue_output
from jobs.repository import changes, leases
from jobs.repository.changes import NewEvent, move_job
from jobs.repository.database import Database
from jobs.repository.models import Artifact, Job
from jobs.settings import Settings

__all__ = ["Claim", "HeartbeatResult", "JobLeases", "Manifest", "ProgressReport", "ReleaseReason", "Swept"]


class JobLeases:
    """Claims jobs for workers and writes their results. One instance per process; each method is a transaction."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def claim(self, owner: str) -> Claim | None:
        """Claim the job whose turn it is: fence + 1, attempt + 1, a new lease. None when there is none."""
        with self._database.transaction() as session:
            job = leases.claim_oldest(session, owner, self._settings.lease_seconds)
            if job is None:
                return None
            return Claim(
                job_id=job.id,
                fence=job.fence,
                attempt=job.attempt,
                max_attempts=job.max_attempts,
                tenant=job.tenant,
                owner=owner,
                spec=leases.load_spec(session, job.id),
                resolved_revision=job.resolved_revision,
                request_id=job.request_id,
                traceparent=job.traceparent,
                waited_seconds=_waited_seconds(job),
                low_memory=job.low_memory,
                retry_from=job.retry_from,
                run_seconds_left=job.max_run_seconds - job.ran_seconds,
            )

    def heartbeat(self, claim: Claim) -> HeartbeatResult:
        """Renew the lease of a claim."""
        with self._database.transaction() as session:
            renewed = leases.renew(session, claim.job_id, claim.fence, self._settings.lease_seconds)
        if renewed is None:
            return HeartbeatResult(ok=False)
        job, seconds_left = renewed
        return HeartbeatResult(
            ok=True, cancel_requested=job.status == JobStatus.CANCELLING, run_seconds_left=seconds_left
        )

    def record_resolved_revision(self, claim: Claim, revision: str) -> bool:
        """Store the commit SHA of the model's revision, so that every later attempt uses the same model."""
        return self._write(claim, {"resolved_revision": storable_text(revision)})

    def record_retry_begun(self, claim: Claim) -> bool:
        """Record that a retry's unwanted files are deleted, so that later attempts keep all files."""
        return self._write(claim, {"retry_from": None})

    def record_progress(self, claim: Claim, progress: ProgressReport) -> bool:
        """Store the report and append a ``progress`` event. The caller limits the rate."""
        shown = progress.as_json()
        return self._write(claim, {"progress": shown}, [NewEvent("progress", shown)])

    def record_stage(self, claim: Claim, name: str, status: StageStatus, seconds: float | None = None) -> bool:
        """Set the line of one stage (new stages are appended) and append a ``stage.status`` event."""
        line = storable_json({"name": name, "status": status.value, "seconds": seconds})
        with self._database.transaction() as session:
            # The list is read and written back, so the row stays locked between the two.
            stages = leases.lock_stages(session, claim.job_id, claim.fence)
            if stages is None:
                return False
            values = {"stages": _with_line(stages, line)}
            event = NewEvent("stage.status", line)
            return leases.update_fenced(session, claim.job_id, claim.fence, values, [event]) is not None

    def record_layers(self, claim: Claim, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Insert or replace layer rows by name, and append one ``layer.completed`` event for each."""
        values = [layer_values(row) for row in rows]
        events = [NewEvent("layer.completed", row) for row in values]
        with self._database.transaction() as session:
            if leases.update_fenced(session, claim.job_id, claim.fence, {}, events) is None:
                return False
            leases.merge_layers(session, claim.job_id, values)
            return True

    def append_event(self, claim: Claim, event_type: str, data: Mapping[str, Any]) -> bool:
        """Append a ``metric`` or ``log`` event."""
        return self._write(claim, {}, [NewEvent(event_type, storable_json(data))])

    def publish(self, claim: Claim, manifest: Manifest) -> bool:
        """Make the job succeed, with all its results, in one fenced UPDATE. False: lost, or a cancel came first."""
        layers = [layer_values(row) for row in manifest.layers]
        values = {
            "summary": storable_json(manifest.summary),
            "report": storable_json(manifest.report),
            "published_fence": claim.fence,
        }
        with self._database.transaction() as session:
            # The fenced UPDATE is first: when the claim is lost, nothing else is written.
            job = self._move(session, claim, JobStatus.SUCCEEDED, values=values)
            if job is None:
                return False
            leases.replace_layers(session, claim.job_id, layers)
            artifacts = [_artifact(claim, entry) for entry in manifest.artifacts]
            leases.add_artifacts(session, artifacts)
            # In the same transaction: no success can lose the publication that it asked for.
            queue_output(session, job, claim.spec, artifacts, self._settings)
            return True

    def fail(self, claim: Claim, problem: JobProblem) -> bool:
        """End the job as failed, or as cancelled if a cancel came first."""
        error = storable_json(problem.as_json(claim.job_id))
        with self._database.transaction() as session:
            failed = self._move(session, claim, JobStatus.FAILED, values={"error": error}, code=problem.code)
            # A cancelling job can not become failed; the only way out is cancelled.
            return failed is not None or self._move(session, claim, JobStatus.CANCELLED) is not None

    def release(self, claim: Claim, reason: ReleaseReason) -> bool:
        """Return the job to the queue, or fail it with ``crash_loop`` after a crash in its last attempt.

        A ``drain`` does not count the attempt. ``low_memory`` is possible once between two retries: it gives the job
        one more attempt, and all later attempts run with less memory. A cancelling job becomes cancelled.
        """
        with self._database.transaction() as session:
            if reason == "crash" and is_last_attempt(claim):
                error = crash_loop(claim.attempt).as_json(claim.job_id)
                moved = self._move(session, claim, JobStatus.FAILED, values={"error": error}, code="crash_loop")
            elif reason == "low_memory":
                moved = self._requeue_with_less(session, claim)
            else:
                moved = self._requeue(session, claim, reason)
            return moved is not None or self._move(session, claim, JobStatus.CANCELLED) is not None

    def cancelled(self, claim: Claim) -> bool:
        """Make a cancelling job cancelled, after its runner ended."""
        with self._database.transaction() as session:
            return self._move(session, claim, JobStatus.CANCELLED) is not None

    def sweep(self, orphans: Collection[ClaimKey] = ()) -> Swept:
        """Repair what dead workers left: expired leases, exceeded deadlines, queued rows without a nudge.

        ``orphans`` are claims on jobs and publications whose process is known to be dead: their lease ends now.
        """
        return sweep(self._database, self._settings, orphans)

    @contextmanager
    def locking_finished_jobs(self, job_ids: Collection[str]) -> Iterator[frozenset[str]]:
        """Yield those of ``job_ids`` whose work files are not needed any more; none can be retried during the block.

        They succeeded, are deleted, or failed or were cancelled before the retention time of work files.
        """
        with self._database.transaction() as session:
            yield leases.lock_finished(session, job_ids, self._settings.work_retention_seconds)

    def beat_worker(self, owner: str, *, hostname: str, pid: int, device: str) -> None:
        """Record that this worker is alive."""
        with self._database.transaction() as session:
            leases.beat_worker(session, owner, hostname, pid, device)

    def _requeue(self, session: Session, claim: Claim, reason: ReleaseReason) -> Job | None:
        counts = reason == "crash"
        return leases.requeue(
            session,
            *leases.fenced(claim.job_id, claim.fence),
            # A drain is no failure of the job, so it adds no delay.
            delay_seconds=self._settings.retry_delay_seconds * claim.attempt if counts else 0.0,
            counts=counts,
            reason=reason,
        )

    def _requeue_with_less(self, session: Session, claim: Claim) -> Job | None:
        queued = leases.requeue(
            session,
            *leases.fenced(claim.job_id, claim.fence),
            # Matches only a job that does not run with less memory yet.
            Job.low_memory.is_(False),
            delay_seconds=self._settings.retry_delay_seconds,
            counts=True,
            values={"low_memory": True, "max_attempts": Job.max_attempts + 1},
            reason="low_memory",
        )
        if queued is not None:
            log = NewEvent("log", {"message": "The run ran out of memory. It is queued again and will run with less."})
            changes.update_job(session, Job.id == claim.job_id, values={}, events=[log])
        return queued

    def _write(self, claim: Claim, values: Mapping[str, Any], events: Sequence[NewEvent] = ()) -> bool:
        with self._database.transaction() as session:
            return leases.update_fenced(session, claim.job_id, claim.fence, values, events) is not None

    def _move(
        self,
        session: Session,
        claim: Claim,
        target: JobStatus,
        *,
        values: Mapping[str, Any] | None = None,
        **event_data: Any,
    ) -> Job | None:
        return move_job(session, target, *leases.fenced(claim.job_id, claim.fence), values=values, **event_data)


def _waited_seconds(job: Job) -> float:
    """Return how long a claimed job could have been claimed before; the delay of a retry does not count."""
    begun = job.attempt_started_at
    return 0.0 if begun is None else (begun - max(job.queued_at, job.available_at)).total_seconds()


def _with_line(stages: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return ``stages`` with the line of the same name replaced, or the new line at the end."""
    if any(stage["name"] == line["name"] for stage in stages):
        return [line if stage["name"] == line["name"] else stage for stage in stages]
    return [*stages, line]


def _artifact(claim: Claim, entry: ManifestEntry) -> Artifact:
    return Artifact(
        id=new_id("art"),
        job_id=claim.job_id,
        fence=claim.fence,
        path=entry.path,
        bytes=entry.bytes,
        sha256=entry.sha256,
        media_type=entry.media_type,
    )
