"""The commands of a tenant on jobs. Each public method is one transaction and returns a frozen view.

Errors: each method names its :class:`jobs.kit.errors.QuantryError`. ``Unavailable``: the database does not answer.
"""

import shutil
from typing import NamedTuple

from jobs.artifacts import ArtifactStore
from jobs.credentials import require_credentials_of
from jobs.idempotency import IdempotentRequest
from jobs.job.artifact_files import ArtifactFiles
from jobs.job.lifecycle import Origin, RetryRequest, cancel, enqueue, find_job, retry
from jobs.job.nudge import Nudger
from jobs.job.queries import job_views
from jobs.job.specification import checked_request
from jobs.job.views import JobView
from jobs.kit.errors import InvalidRequest, InvalidState
from jobs.repository import jobs
from jobs.repository.database import Database
from jobs.settings import Settings
from quant_engine.interface.stages import RetryStage
from quant_engine.policy import JobRequest


class CreatedJob(NamedTuple):
    """The answer to a request for a job. ``is_new`` is false when the Idempotency-Key returned a stored answer."""

    job: JobView
    is_new: bool


class JobCommands:
    """Creates, cancels, retries and deletes jobs. Every query is limited to ``tenant``; ids of others look missing."""

    def __init__(self, database: Database, settings: Settings, store: ArtifactStore, nudger: Nudger) -> None:
        self._database = database
        self._settings = settings
        self._files = ArtifactFiles(store, settings)
        self._nudger = nudger

    def create_job(
        self,
        request: JobRequest,
        *,
        tenant: str,
        idempotency_key: str | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> CreatedJob:
        """Validate, resolve and enqueue a job; then nudge a worker, after the commit.

        ``request_id`` and ``traceparent`` (W3C Trace Context) are stored with the job for the worker's logs and traces.

        Raises:
            InvalidPolicy, ModelNotFound, DatasetNotFound, RefusedJob, UnknownCredential: the request can not be done;
                names the field.
            IdempotencyConflict: the key belongs to another request.
            IdempotencyInFlight: a request with the same key is being answered.
        """
        kept = self._settings.idempotency_seconds
        idempotent = IdempotentRequest.of(tenant, "POST /v1/jobs", idempotency_key, request, keep_seconds=kept)
        # Before the transaction: reading a model's files must not hold a connection.
        spec = self._checked(request)
        with self._database.transaction() as session:
            stored = idempotent.replay(session, JobView)
            if stored is not None:
                return CreatedJob(stored, is_new=False)
            if isinstance(spec, InvalidRequest):
                raise spec
            # Checked now, so that a wrong id is reported to the client and not by a failed job.
            require_credentials_of(session, tenant, request)
            job = enqueue(session, spec, tenant, self._settings, Origin(request_id, traceparent))
            view = job_views(session, [job])[0]
            idempotent.remember(session, view)
        # After the commit: a worker that is nudged earlier would not see the row.
        self._nudger.nudge()
        return CreatedJob(view, is_new=True)

    def _checked(self, request: JobRequest) -> JobRequest | InvalidRequest:
        """Return the resolved request, or why it is refused; a stored answer to the same request comes before that."""
        try:
            return checked_request(request, self._settings)
        except InvalidRequest as error:
            return error

    def cancel_job(self, job_id: str, *, tenant: str, idempotency_key: str | None = None) -> JobView:
        """Cancel a job. Raises: JobNotFound, InvalidState if it is over, IdempotencyConflict, IdempotencyInFlight."""
        kept = self._settings.idempotency_seconds
        idempotent = IdempotentRequest.of(
            tenant, f"POST /v1/jobs/{job_id}/cancel", idempotency_key, None, keep_seconds=kept
        )
        with self._database.transaction() as session:
            stored = idempotent.replay(session, JobView)
            if stored is not None:
                return stored
            view = job_views(session, [cancel(session, tenant, job_id)])[0]
            idempotent.remember(session, view)
            return view

    def retry_job(
        self,
        job_id: str,
        *,
        tenant: str,
        from_stage: RetryStage | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> JobView:
        """Queue a failed or cancelled job again; then nudge a worker, after the commit.

        It resumes from what its attempts left on the machine that runs it, or at the stage ``from_stage``.

        Raises: JobNotFound, InvalidState for a job in another state, IdempotencyConflict, IdempotencyInFlight.
        """
        wanted = RetryRequest(from_stage=from_stage)
        kept = self._settings.idempotency_seconds
        idempotent = IdempotentRequest.of(
            tenant, f"POST /v1/jobs/{job_id}/retry", idempotency_key, wanted, keep_seconds=kept
        )
        with self._database.transaction() as session:
            stored = idempotent.replay(session, JobView)
            if stored is not None:
                return stored
            origin = Origin(request_id, traceparent)
            job = retry(session, tenant, job_id, wanted, self._settings.max_attempts, origin)
            view = job_views(session, [job])[0]
            idempotent.remember(session, view)
        self._nudger.nudge()
        return view

    def delete_job(self, job_id: str, *, tenant: str) -> None:
        """Delete rows and work files of a finished job. ``jobs.gc`` later removes bytes that no other job has.

        Raises: JobNotFound, InvalidState.
        """
        with self._database.transaction() as session:
            job = find_job(session, tenant, job_id)
            if not jobs.delete_terminal(session, tenant, job_id):
                raise InvalidState(
                    f"The job is {job.status}. Cancel it first; it can be deleted once it is over.", retry_after=5
                )
        # Files go after the commit: a rollback must not leave a job without its files.
        self._files.forget(job_id)
        shutil.rmtree(self._settings.work_dir / job_id, ignore_errors=True)
