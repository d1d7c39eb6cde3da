"""Creating, cancelling and retrying a job for a tenant. The functions work in their caller's transaction."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from jobs.job.rendering import shown_options
from jobs.kit.errors import InvalidState, JobNotFound
from jobs.kit.ids import is_id, new_id
from jobs.kit.states import JobStatus
from jobs.repository import changes, jobs
from jobs.repository.models import Job
from jobs.settings import Settings
from quant_engine.interface.stages import RetryStage
from quant_engine.policy import JobRequest, policy_hash


class RetryRequest(BaseModel):
    """The body of a retry: the stage to begin at. Without one it resumes from all that its attempts left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_stage: RetryStage | None = None


@dataclass(frozen=True)
class Origin:
    """The request that queues a job, for the logs and traces of the worker."""

    request_id: str | None = None
    traceparent: str | None = None


def find_job(session: Session, tenant: str, job_id: str) -> Job:
    """Return the tenant's job. Raises: JobNotFound."""
    # An id that has the wrong form is not sent to the database.
    job = jobs.find(session, tenant, job_id) if is_id(job_id) else None
    if job is None:
        raise JobNotFound
    return job


def enqueue(session: Session, spec: JobRequest, tenant: str, settings: Settings, origin: Origin) -> Job:
    """Insert a new job. ``spec`` is resolved and checked (:mod:`jobs.job.specification`)."""
    job = Job(
        id=new_id("job"),
        tenant=tenant,
        status=JobStatus.QUEUED.value,
        max_attempts=settings.max_attempts,
        max_queue_seconds=spec.limits.max_queue_seconds,
        max_run_seconds=spec.limits.max_run_seconds,
        request_id=origin.request_id,
        traceparent=origin.traceparent,
        model_source=spec.model.source,
        model_id=spec.model.id,
        model_revision=spec.model.revision,
        policy=spec.policy.model_dump(mode="json"),
        policy_hash=policy_hash(spec.policy),
        options=shown_options(spec),
        labels=spec.metadata,
        spec=spec.model_dump(mode="json"),
    )
    changes.insert_job(session, job)
    return job


def cancel(session: Session, tenant: str, job_id: str) -> Job:
    """Cancel a job and return it.

    Raises:
        JobNotFound: there is none.
        InvalidState: the job is over.
    """
    job = _locked(session, tenant, job_id)
    # Cancelling twice is no error: the client wants the same state.
    if job.status == JobStatus.CANCELLING:
        return job
    cancelled = jobs.request_cancel(session, job)
    if cancelled is None:
        raise InvalidState(f"The job is already {job.status}. There is nothing left to cancel.")
    return cancelled


def retry(session: Session, tenant: str, job_id: str, request: RetryRequest, attempts: int, origin: Origin) -> Job:
    """Queue a job again, with ``attempts`` more attempts and its full time.

    Raises:
        JobNotFound: there is none.
        InvalidState: the job has succeeded, or is not over.
    """
    job = _locked(session, tenant, job_id)
    restarted = jobs.restart(
        session,
        job,
        attempts=attempts,
        from_stage=request.from_stage,
        origin={"request_id": origin.request_id, "traceparent": origin.traceparent},
    )
    if restarted is not None:
        return restarted
    if job.status == JobStatus.SUCCEEDED:
        raise InvalidState("The job has succeeded, which is final. Submit a new job to quantize the model again.")
    if job.status == JobStatus.CANCELLING:
        raise InvalidState("The job is being cancelled. It can be retried once it is cancelled.", retry_after=5)
    raise InvalidState(f"The job is {job.status}. Cancel it first; it can be retried once it is over.", retry_after=5)


def _locked(session: Session, tenant: str, job_id: str) -> Job:
    """Return the job with its row locked, so that a claim or a publish comes entirely before or after."""
    job = jobs.lock(session, tenant, job_id) if is_id(job_id) else None
    if job is None:
        raise JobNotFound
    return job
