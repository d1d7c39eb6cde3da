"""The queries of a tenant on jobs. Each public method is one transaction and returns a frozen view.

Errors: each method names its :class:`jobs.kit.errors.QuantryError`. ``Unavailable``: the database does not answer.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactStore
from jobs.job.artifact_files import ArtifactFile, ArtifactFiles
from jobs.job.lifecycle import find_job
from jobs.job.rendering import LAYER_NUMBERS, artifact_view, event_view, job_view, layer_view
from jobs.job.views import ArtifactView, EventView, JobView, LayerView
from jobs.kit import cursors
from jobs.kit.errors import ArtifactNotFound, ArtifactsExpired, InvalidQuery, JobNotFound, ReportNotFound
from jobs.kit.ids import is_id
from jobs.kit.states import JobStatus
from jobs.kit.storable import is_storable, storable_text
from jobs.kit.views import Item, Page, QueueHealth
from jobs.publications.queueing import CHECKPOINT_PREFIX
from jobs.repository import jobs, overview, schema, turns
from jobs.repository.database import Database
from jobs.repository.models import Job, JobLayer
from jobs.settings import Settings
from quant_engine.policy.fields import MAX_INT32


class JobQueries:
    """Reads jobs and what belongs to them. Every query is limited to ``tenant``; ids of others look missing."""

    def __init__(self, database: Database, settings: Settings, store: ArtifactStore) -> None:
        self._database = database
        self._settings = settings
        self._files = ArtifactFiles(store, settings)

    def get_job(self, job_id: str, *, tenant: str) -> JobView:
        """Return a job. Raises: JobNotFound."""
        with self._database.transaction() as session:
            return job_views(session, [find_job(session, tenant, job_id)])[0]

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
        """List jobs, newest first, by keyset on (created_at, id). Raises: InvalidQuery for a foreign cursor."""
        filters = {"status": status, "model_id": model}
        labels = metadata or {}
        # Text that PostgreSQL can not store is refused here, before the query fails.
        _check_storable({"model": model or "", **{f"metadata[{key}]": key + value for key, value in labels.items()}})
        with self._database.transaction() as session:
            found = jobs.page(
                session,
                tenant,
                # One row more than asked for shows whether another page follows.
                limit=limit + 1,
                after=None if after is None else cursors.decode_job(after),
                filters={name: value for name, value in filters.items() if value is not None},
                labels=labels,
            )
            views = job_views(session, found[:limit])
        return _page(views, len(found) > limit, lambda last: cursors.encode_job(last.created_at, last.id))

    def list_events(self, job_id: str, *, tenant: str, after: int = 0, limit: int = 100) -> Page[EventView]:
        """List events with ``id`` > after, oldest first; next_cursor is the last id. Raises: JobNotFound."""
        with self._database.transaction() as session:
            find_job(session, tenant, job_id)
            # The column is a 32-bit integer; a larger number would be an error of the database.
            found = jobs.events_after(session, job_id, min(after, MAX_INT32), limit + 1)
        views = [event_view(event) for event in found[:limit]]
        return _page(views, len(found) > limit, lambda last: str(last.id))

    def list_layers(
        self, job_id: str, *, tenant: str, sort: str = "block", limit: int = 100, after: str | None = None
    ) -> Page[LayerView]:
        """List layers by ``sort``, a numeric field; ``-`` before it: descending. Raises: JobNotFound, InvalidQuery."""
        field = sort.removeprefix("-").removeprefix("+")
        if field not in LAYER_NUMBERS:
            known = ", ".join(LAYER_NUMBERS)
            raise InvalidQuery(f"Layers can be sorted by a numeric field, '-' before it: {known}.", pointer="?sort")
        # The order is part of the cursor: a cursor of another order is refused.
        order = ("-" if sort.startswith("-") else "") + field
        with self._database.transaction() as session:
            find_job(session, tenant, job_id)
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
        """Return the report of a job. Raises: JobNotFound, ReportNotFound."""
        with self._database.transaction() as session:
            found = jobs.find_report(session, tenant, job_id) if is_id(job_id) else None
        if found is None:
            raise JobNotFound
        status, report = found
        if report is None:
            over = JobStatus(status).is_terminal
            remedy = "its error has the reason" if over else "the report exists once it has succeeded"
            raise ReportNotFound(f"The job is {status}: {remedy}.", retry_after=None if over else 5)
        return report

    def list_artifacts(self, job_id: str, *, tenant: str) -> Page[ArtifactView]:
        """List all artifacts in one page, by path. Raises: JobNotFound."""
        with self._database.transaction() as session:
            find_job(session, tenant, job_id)
            found = jobs.artifacts_of(session, job_id)
        return _page([artifact_view(artifact) for artifact in found], False, lambda last: last.id)

    def open_artifact(self, artifact_id: str, *, tenant: str) -> ArtifactFile:
        """Return one artifact, without a request to the store. Raises: ArtifactNotFound, ArtifactsExpired."""
        with self._database.transaction() as session:
            artifact = jobs.find_artifact(session, tenant, artifact_id) if is_id(artifact_id) else None
            if artifact is None:
                raise ArtifactNotFound
            _not_expired(find_job(session, tenant, artifact.job_id))
        return self._files.open(artifact)

    def archive_files(self, job_id: str, *, tenant: str) -> tuple[ArtifactFile, ...]:
        """Return the files of the checkpoint directory, by path; empty before success.

        Raises: JobNotFound, ArtifactsExpired, ArtifactNotFound when one of them is gone, StoreUnavailable.
        """
        with self._database.transaction() as session:
            _not_expired(find_job(session, tenant, job_id))
            found = jobs.artifacts_of(session, job_id)
        files = tuple(self._files.open(artifact) for artifact in found if artifact.path.startswith(CHECKPOINT_PREFIX))
        # All are checked first: an archive that has begun can not report a missing file.
        for file in files:
            file.require()
        return files

    def queue_health(self) -> QueueHealth:
        """Return the state of the queue. Raises: Unavailable; NotMigrated if the database is of an older release."""
        with self._database.transaction() as session:
            schema.require_current(session)
            return overview.queue_health(session, alive_seconds=self._settings.lease_seconds)


def job_views(session: Session, found: Sequence[Job]) -> list[JobView]:
    """Return the views of rows, with the queue position of those that wait."""
    queued = [job.id for job in found if job.status == JobStatus.QUEUED]
    positions = turns.queue_positions(session, queued)
    return [job_view(job, positions.get(job.id)) for job in found]


def _not_expired(job: Job) -> None:
    if job.expired_at is not None:
        raise ArtifactsExpired


def _check_storable(parameters: dict[str, str]) -> None:
    for name, value in parameters.items():
        if not is_storable(value):
            raise InvalidQuery(
                "The value has characters that no stored value can have.", pointer=f"?{storable_text(name)}"
            )


def _page(views: Sequence[Item], has_more: bool, cursor: Callable[[Item], str]) -> Page[Item]:
    return Page(data=tuple(views), has_more=has_more, next_cursor=cursor(views[-1]) if has_more else None)
