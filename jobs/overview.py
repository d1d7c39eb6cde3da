"""The operator's view of the whole installation, across tenants: for metrics and capabilities."""

from jobs.database import Database
from jobs.repository import overview
from jobs.settings import Settings
from jobs.states import JobStatus
from jobs.views import Timestamp, View


class WorkerView(View):
    """A worker that said lately that it is alive."""

    hostname: str
    device: str
    started_at: Timestamp
    heartbeat_at: Timestamp
    last_claim_at: Timestamp | None


class Overview:
    """Read-only questions. Every method raises Unavailable when the database does not answer."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._alive_seconds = settings.lease_seconds

    def jobs_by_status(self) -> dict[str, int]:
        """How many jobs have each status, zeros included."""
        with self._database.transaction() as session:
            counts = overview.count_by_status(session)
        return {status.value: counts.get(status.value, 0) for status in JobStatus}

    def recent_workers(self) -> tuple[WorkerView, ...]:
        """The workers that beat within the last lease."""
        with self._database.transaction() as session:
            found = overview.workers_since(session, self._alive_seconds)
            return tuple(WorkerView.model_validate(worker, from_attributes=True) for worker in found)
