"""The use cases of the API side. Each public method is one transaction; what it returns is a frozen view.

Errors: any :class:`jobs.errors.QuantryError` named per method; a database that does not answer is ``Unavailable``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.database import Database
from jobs.queue import Nudger
from jobs.settings import Settings
from jobs.states import JobStatus
from jobs.views import ArtifactView, EventView, JobView, LayerView, Page, QueueHealth
from quant_engine.policy import JobRequest


@dataclass(frozen=True)
class ArtifactFile:
    """An artifact and the file that holds it."""

    view: ArtifactView
    path: Path


class JobService:
    """What a tenant can do with jobs. Every query is scoped by ``tenant``; foreign ids look missing."""

    def __init__(self, database: Database, settings: Settings, store: ArtifactStore, nudger: Nudger) -> None:
        self._database = database
        self._settings = settings
        self._store = store
        self._nudger = nudger

    def create_job(
        self, request: JobRequest, *, tenant: str, idempotency_key: str | None = None
    ) -> tuple[JobView, bool]:
        """Validate, resolve and enqueue; nudges a worker after the commit. False: replayed from the Idempotency-Key.

        Raises:
            InvalidPolicy, ModelNotFound, DatasetNotFound: what is asked for can not be done; names the field.
            IdempotencyConflict, IdempotencyInFlight: the key is used by another request, or right now.
        """
        raise NotImplementedError

    def get_job(self, job_id: str, *, tenant: str) -> JobView:
        """Raises: JobNotFound."""
        raise NotImplementedError

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
        raise NotImplementedError

    def cancel_job(self, job_id: str, *, tenant: str, idempotency_key: str | None = None) -> JobView:
        """Raises: JobNotFound, InvalidState on a terminal job, IdempotencyConflict, IdempotencyInFlight."""
        raise NotImplementedError

    def delete_job(self, job_id: str, *, tenant: str) -> None:
        """Rows, artifacts and work files of a terminal job. Raises: JobNotFound, InvalidState."""
        raise NotImplementedError

    def list_events(self, job_id: str, *, tenant: str, after: int = 0, limit: int = 100) -> Page[EventView]:
        """Events with ``id`` > after, oldest first; next_cursor is the last id. Raises: JobNotFound."""
        raise NotImplementedError

    def list_layers(
        self, job_id: str, *, tenant: str, sort: str = "block", limit: int = 100, after: str | None = None
    ) -> Page[LayerView]:
        """``sort``: a numeric field, ``-`` before it for descending. Raises: JobNotFound, InvalidQuery."""
        raise NotImplementedError

    def get_report(self, job_id: str, *, tenant: str) -> dict[str, Any]:
        """Raises: JobNotFound, ReportNotFound."""
        raise NotImplementedError

    def list_artifacts(self, job_id: str, *, tenant: str) -> Page[ArtifactView]:
        """All of them in one page, by path. Raises: JobNotFound."""
        raise NotImplementedError

    def open_artifact(self, artifact_id: str, *, tenant: str) -> ArtifactFile:
        """Raises: ArtifactNotFound."""
        raise NotImplementedError

    def archive_files(self, job_id: str, *, tenant: str) -> tuple[ArtifactFile, ...]:
        """The files of the checkpoint directory, by path; empty before success. Raises: JobNotFound."""
        raise NotImplementedError

    def queue_health(self) -> QueueHealth:
        """Raises: Unavailable when the database does not answer."""
        raise NotImplementedError
