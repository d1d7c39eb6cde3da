"""The use cases of the API side. Each public method is one transaction; what it returns is a frozen view.

Errors: any :class:`jobs.errors.QuantryError` named per method; a database that does not answer is ``Unavailable``.
"""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.orm import Session

from jobs import cursors
from jobs.artifact_files import ArtifactFile, ArtifactFiles
from jobs.artifacts import ArtifactStore
from jobs.clean import clean_text, is_storable
from jobs.credentials import require_credentials_of
from jobs.database import Database
from jobs.errors import ArtifactNotFound, ArtifactsExpired, InvalidQuery, InvalidState, JobNotFound, ReportNotFound
from jobs.ids import is_id, new_id
from jobs.models import Job, JobLayer
from jobs.once import Once
from jobs.publications.queueing import CHECKPOINT_PREFIX
from jobs.queue import Nudger
from jobs.rendering import LAYER_NUMBERS, artifact_view, event_view, job_view, layer_view, shown_options
from jobs.repository import changes, jobs, schema
from jobs.settings import Settings
from jobs.specification import resolve_request
from jobs.states import JobStatus
from jobs.views import ArtifactView, EventView, Item, JobView, LayerView, Page, QueueHealth
from quant_engine.policy import JobRequest, policy_hash
from quant_engine.policy.fields import MAX_INT32


class JobService:
    """What a tenant can do with jobs. Every query is scoped by ``tenant``; foreign ids look missing."""

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
    ) -> tuple[JobView, bool]:
        """Validate, resolve and enqueue; nudges a worker after the commit. False: replayed from the Idempotency-Key.

        ``request_id`` and ``traceparent`` (W3C Trace Context) go with the job to whoever runs it, for logs and traces.

        Raises:
            InvalidPolicy, ModelNotFound, DatasetNotFound, UnknownCredential: what is asked for can not be done; names
                the field.
            IdempotencyConflict, IdempotencyInFlight: the key is used by another request, or right now.
        """
        kept = self._settings.idempotency_seconds
        once = Once.of(tenant, "POST /v1/jobs", idempotency_key, request, keep_seconds=kept)
        with self._database.transaction() as session:
            stored = once.replay(session, JobView)
            if stored is not None:
                return stored, False
            require_credentials_of(session, tenant, request)
            job = _new_job(resolve_request(request, self._settings), tenant, self._settings.max_attempts)
            job.request_id, job.traceparent = request_id, traceparent
            changes.insert_job(session, job)
            view = self._views(session, [job])[0]
            once.remember(session, view)
        self._nudger.nudge()
        return view, True

    def get_job(self, job_id: str, *, tenant: str) -> JobView:
        """Raises: JobNotFound."""
        with self._database.transaction() as session:
            return self._views(session, [_find(session, tenant, job_id)])[0]

    def list_jobs(
        self,
        *,
        tenant: str,
        limit: int = 20,
        after: str | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Page[JobView]:
        """Newest first, keyset on (created_at, id). Raises: InvalidQuery for a foreign cursor."""
        filters = {"status": status, "model_id": model}
        labels = metadata or {}
        _check_storable({"model": model or "", **{f"metadata[{key}]": key + value for key, value in labels.items()}})
        with self._database.transaction() as session:
            found = jobs.page(
                session,
                tenant,
                limit=limit + 1,
                after=None if after is None else cursors.decode_job(after),
                filters={name: value for name, value in filters.items() if value is not None},
                labels=labels,
            )
            views = self._views(session, found[:limit])
        return _page(views, len(found) > limit, lambda last: cursors.encode_job(last.created_at, last.id))

    def cancel_job(self, job_id: str, *, tenant: str, idempotency_key: str | None = None) -> JobView:
        """Raises: JobNotFound, InvalidState on a terminal job, IdempotencyConflict, IdempotencyInFlight."""
        kept = self._settings.idempotency_seconds
        once = Once.of(tenant, f"POST /v1/jobs/{job_id}/cancel", idempotency_key, None, keep_seconds=kept)
        with self._database.transaction() as session:
            stored = once.replay(session, JobView)
            if stored is not None:
                return stored
            view = self._views(session, [_cancel(session, tenant, job_id)])[0]
            once.remember(session, view)
            return view

    def delete_job(self, job_id: str, *, tenant: str) -> None:
        """Rows and work files of a terminal job, at once; bytes that no other job has follow with ``jobs.gc``.

        Raises: JobNotFound, InvalidState.
        """
        with self._database.transaction() as session:
            job = _find(session, tenant, job_id)
            if not jobs.delete_terminal(session, tenant, job_id):
                raise InvalidState(
                    f"The job is {job.status}. Cancel it first; it can be deleted once it is over.", retry_after=5
                )
        self._files.forget(job_id)
        shutil.rmtree(self._settings.work_dir / job_id, ignore_errors=True)

    def list_events(self, job_id: str, *, tenant: str, after: int = 0, limit: int = 100) -> Page[EventView]:
        """Events with ``id`` > after, oldest first; next_cursor is the last id. Raises: JobNotFound."""
        with self._database.transaction() as session:
            _find(session, tenant, job_id)
            found = jobs.events_after(session, job_id, min(after, MAX_INT32), limit + 1)
        views = [event_view(event) for event in found[:limit]]
        return _page(views, len(found) > limit, lambda last: str(last.id))

    def list_layers(
        self, job_id: str, *, tenant: str, sort: str = "block", limit: int = 100, after: str | None = None
    ) -> Page[LayerView]:
        """``sort``: a numeric field, ``-`` before it for descending. Raises: JobNotFound, InvalidQuery."""
        field = sort.removeprefix("-").removeprefix("+")
        if field not in LAYER_NUMBERS:
            known = ", ".join(LAYER_NUMBERS)
            raise InvalidQuery(f"Layers can be sorted by a numeric field, '-' before it: {known}.", pointer="?sort")
        order = ("-" if sort.startswith("-") else "") + field
        with self._database.transaction() as session:
            _find(session, tenant, job_id)
            found = jobs.layers_after(
                session,
                job_id,
                column=getattr(JobLayer, field),
                descending=order.startswith("-"),
                after=None if after is None else cursors.decode_layer(after, order),
                limit=limit + 1,
            )
        views = [layer_view(layer) for layer in found[:limit]]
        return _page(
            views, len(found) > limit, lambda last: cursors.encode_layer(order, getattr(last, field), last.name)
        )

    def get_report(self, job_id: str, *, tenant: str) -> dict[str, Any]:
        """Raises: JobNotFound, ReportNotFound."""
        with self._database.transaction() as session:
            found = jobs.find_report(session, tenant, job_id) if is_id(job_id) else None
        if found is None:
            raise JobNotFound
        status, report = found
        if report is None:
            over = JobStatus(status).is_terminal
            remedy = "its error says why" if over else "the report comes with its success"
            raise ReportNotFound(f"The job is {status}: {remedy}.", retry_after=None if over else 5)
        return report

    def list_artifacts(self, job_id: str, *, tenant: str) -> Page[ArtifactView]:
        """All of them in one page, by path. Raises: JobNotFound."""
        with self._database.transaction() as session:
            _find(session, tenant, job_id)
            found = jobs.artifacts_of(session, job_id)
        return _page([artifact_view(artifact) for artifact in found], False, lambda last: last.id)

    def open_artifact(self, artifact_id: str, *, tenant: str) -> ArtifactFile:
        """Nothing is asked of the store yet. Raises: ArtifactNotFound, ArtifactsExpired."""
        with self._database.transaction() as session:
            artifact = jobs.find_artifact(session, tenant, artifact_id) if is_id(artifact_id) else None
            if artifact is None:
                raise ArtifactNotFound
            _not_expired(_find(session, tenant, artifact.job_id))
        return self._files.open(artifact)

    def archive_files(self, job_id: str, *, tenant: str) -> tuple[ArtifactFile, ...]:
        """The files of the checkpoint directory, by path; empty before success.

        Raises: JobNotFound, ArtifactsExpired, ArtifactNotFound when one of them is gone, StoreUnavailable.
        """
        with self._database.transaction() as session:
            _not_expired(_find(session, tenant, job_id))
            found = jobs.artifacts_of(session, job_id)
        files = tuple(self._files.open(artifact) for artifact in found if artifact.path.startswith(CHECKPOINT_PREFIX))
        for file in files:
            file.require()
        return files

    def queue_health(self) -> QueueHealth:
        """Raises: Unavailable when the database does not answer, NotMigrated when it is of an older release."""
        with self._database.transaction() as session:
            schema.require_current(session)
            return jobs.queue_health(session, alive_seconds=self._settings.lease_seconds)

    def _views(self, session: Session, found: Sequence[Job]) -> list[JobView]:
        queued = [job.id for job in found if job.status == JobStatus.QUEUED]
        positions = jobs.queue_positions(session, queued)
        return [job_view(job, positions.get(job.id)) for job in found]


def _find(session: Session, tenant: str, job_id: str) -> Job:
    job = jobs.find(session, tenant, job_id) if is_id(job_id) else None
    if job is None:
        raise JobNotFound
    return job


def _not_expired(job: Job) -> None:
    if job.expired_at is not None:
        raise ArtifactsExpired


def _cancel(session: Session, tenant: str, job_id: str) -> Job:
    """The job after the cancel. The row is locked first, so a claim or a publish beside it comes before or after."""
    job = jobs.lock(session, tenant, job_id) if is_id(job_id) else None
    if job is None:
        raise JobNotFound
    if job.status == JobStatus.CANCELLING:
        return job
    cancelled = jobs.request_cancel(session, job)
    if cancelled is None:
        raise InvalidState(f"The job is already {job.status}. There is nothing left to cancel.")
    return cancelled


def _new_job(spec: JobRequest, tenant: str, max_attempts: int) -> Job:
    return Job(
        id=new_id("job"),
        tenant=tenant,
        status=JobStatus.QUEUED.value,
        max_attempts=max_attempts,
        max_queue_seconds=spec.limits.max_queue_seconds,
        max_run_seconds=spec.limits.max_run_seconds,
        model_source=spec.model.source,
        model_id=spec.model.id,
        model_revision=spec.model.revision,
        policy=spec.policy.model_dump(mode="json"),
        policy_hash=policy_hash(spec.policy),
        options=shown_options(spec),
        labels=spec.metadata,
        spec=spec.model_dump(mode="json"),
    )


def _check_storable(parameters: dict[str, str]) -> None:
    for name, value in parameters.items():
        if not is_storable(value):
            raise InvalidQuery(
                "The value has characters that no stored value can have.", pointer=f"?{clean_text(name)}"
            )


def _page(views: Sequence[Item], has_more: bool, cursor: Callable[[Item], str]) -> Page[Item]:
    return Page(data=tuple(views), has_more=has_more, next_cursor=cursor(views[-1]) if has_more else None)
