"""The operations of tenants on publications. Each public method is one transaction and returns a frozen view."""

from sqlalchemy.orm import Session

from jobs.credentials import require_credential
from jobs.idempotency import IdempotentRequest
from jobs.kit import cursors
from jobs.kit.errors import ArtifactsExpired, InvalidState, JobNotFound, PublicationNotFound
from jobs.kit.ids import is_id
from jobs.kit.states import JobStatus
from jobs.kit.views import Page
from jobs.publications.queueing import CHECKPOINT_PREFIX, queue
from jobs.publications.views import PublicationView, publication_view
from jobs.repository import jobs, publications
from jobs.repository.database import Database
from jobs.repository.models import Job, Publication
from jobs.settings import Settings
from quant_engine.policy.request import HubTarget


class PublicationService:
    """The operations on publications. Every query is limited to ``tenant``; ids of others look missing."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def create(
        self, job_id: str, target: HubTarget, *, tenant: str, idempotency_key: str | None = None
    ) -> PublicationView:
        """Queue a push of the job's checkpoint; a worker's publisher takes it within seconds.

        Raises:
            JobNotFound: this tenant has no such job.
            InvalidState: the job has not succeeded, or made no checkpoint.
            ArtifactsExpired: retention removed its files.
            UnknownCredential: the tenant has no such credential.
            IdempotencyConflict: the key belongs to another request.
            IdempotencyInFlight: a request with the same key is being answered.
        """
        kept = self._settings.idempotency_seconds
        idempotent = IdempotentRequest.of(
            tenant, f"POST /v1/jobs/{job_id}/publications", idempotency_key, target, keep_seconds=kept
        )
        with self._database.transaction() as session:
            stored = idempotent.replay(session, PublicationView)
            if stored is not None:
                return stored
            # First by tenant: ``_with_files`` does not check whose job it is.
            _find_job(session, tenant, job_id)
            # The lock is taken before the files are read, so retention can not expire them in between.
            job = _succeeded(_with_files(session, job_id))
            require_credential(session, tenant, target.credential, "/credential")
            files = publications.artifacts_of(session, job.id, CHECKPOINT_PREFIX)
            if not files:
                raise InvalidState("The job made no checkpoint, so there is nothing to publish.")
            row = queue(
                session,
                job_id=job.id,
                tenant=tenant,
                target=target,
                files=files,
                max_attempts=self._settings.publish_max_attempts,
            )
            view = publication_view(row)
            idempotent.remember(session, view)
        return view

    def list_of(self, job_id: str, *, tenant: str, limit: int = 20, after: str | None = None) -> Page[PublicationView]:
        """List a job's publications, newest first. Raises: JobNotFound, InvalidQuery for a foreign cursor."""
        cursor = None if after is None else cursors.decode_job(after)
        with self._database.transaction() as session:
            _find_job(session, tenant, job_id)
            found = publications.page(session, job_id, limit=limit + 1, after=cursor)
        views = tuple(publication_view(row) for row in found[:limit])
        has_more = len(found) > limit
        last = cursors.encode_job(views[-1].created_at, views[-1].id) if has_more else None
        return Page(data=views, has_more=has_more, next_cursor=last)

    def get(self, publication_id: str, *, tenant: str) -> PublicationView:
        """Return a publication. Raises: PublicationNotFound."""
        with self._database.transaction() as session:
            return publication_view(_find(session, tenant, publication_id))

    def retry(self, publication_id: str, *, tenant: str, idempotency_key: str | None = None) -> PublicationView:
        """Queue a failed publication again, with its full number of attempts.

        Raises:
            PublicationNotFound, InvalidState, ArtifactsExpired, IdempotencyConflict, IdempotencyInFlight.
        """
        endpoint, kept = f"POST /v1/publications/{publication_id}/retry", self._settings.idempotency_seconds
        idempotent = IdempotentRequest.of(tenant, endpoint, idempotency_key, None, keep_seconds=kept)
        with self._database.transaction() as session:
            stored = idempotent.replay(session, PublicationView)
            if stored is not None:
                return stored
            found = _find(session, tenant, publication_id)
            # The job is locked first, so that its files can not expire before the publication is queued.
            _with_files(session, found.job_id)
            restarted = publications.restart(session, tenant, publication_id)
            if restarted is None:
                raise InvalidState(f"The publication is {found.status}. Only a failed one can be retried.")
            view = publication_view(restarted)
            idempotent.remember(session, view)
        return view


def _find_job(session: Session, tenant: str, job_id: str) -> Job:
    job = jobs.find(session, tenant, job_id) if is_id(job_id) else None
    if job is None:
        raise JobNotFound
    return job


def _with_files(session: Session, job_id: str) -> Job:
    """Lock the job, whose files then stay until the transaction ends. Raises: JobNotFound, ArtifactsExpired."""
    job = jobs.lock_for_share(session, job_id)
    if job is None:
        raise JobNotFound
    if job.expired_at is not None:
        raise ArtifactsExpired
    return job


def _succeeded(job: Job) -> Job:
    status = JobStatus(job.status)
    if status is JobStatus.SUCCEEDED:
        return job
    if status.is_terminal:
        raise InvalidState(f"The job is {status}: it has no checkpoint to publish.")
    raise InvalidState(f"The job is {status}. It can be published once it has succeeded.", retry_after=5)


def _find(session: Session, tenant: str, publication_id: str) -> Publication:
    row = publications.find(session, tenant, publication_id) if is_id(publication_id) else None
    if row is None:
        raise PublicationNotFound
    return row
