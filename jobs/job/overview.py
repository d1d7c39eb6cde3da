"""The state of the whole installation, across tenants: for readiness, metrics and capabilities."""

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field
from sqlalchemy.orm import Session

from jobs.kit.states import DeliveryStatus, JobStatus, PublicationStatus
from jobs.kit.views import QueueHealth, Timestamp, View
from jobs.repository import overview
from jobs.repository.database import Database
from jobs.repository.overview import Counts
from jobs.settings import Settings

_CHEAP_SECONDS: Final = 0.5
_COST: Final = 100.0
"""A slow count is cached for a hundred times as long as it took: at most one percent of the database's time."""


class WorkerView(View):
    """A worker that reported recently. ``busy``: it holds a job. The JSON leaves out internal fields."""

    owner: Annotated[str, Field(exclude=True)]
    busy: Annotated[bool, Field(exclude=True)] = False
    hostname: Annotated[str, Field(examples=["worker-1"])]
    """The machine."""
    device: Annotated[str, Field(examples=["cuda:0"])]
    """The device that jobs run on."""
    started_at: Timestamp
    """When it started."""
    heartbeat_at: Timestamp
    """When it last reported."""
    last_claim_at: Timestamp | None
    """When it last took a job."""


class Installation(View):
    """The counts of the database at one moment. They have every status, zeros included."""

    jobs: Mapping[str, int]
    publications: Mapping[str, int]
    webhook_deliveries: Mapping[str, int]
    queue: QueueHealth


class Overview:
    """Read-only queries. Every method raises Unavailable when the database does not answer."""

    def __init__(self, database: Database, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._alive_seconds = settings.lease_seconds
        self._finished = _CachedCount(overview.count_finished, clock)
        self._publications = _CachedCount(overview.count_publications, clock)
        self._deliveries = _CachedCount(overview.count_deliveries, clock)

    def installation(self) -> Installation:
        """Return all counts. Counts of final states may be a little old where there are very many rows."""
        with self._database.transaction() as session:
            # First, so that the time to connect is not measured as the time of a count.
            queue = overview.queue_health(session, self._alive_seconds)
            return Installation(
                queue=queue,
                jobs=_every(JobStatus, {**self._finished.read(session), **overview.count_unfinished(session)}),
                publications=_every(PublicationStatus, self._publications.read(session)),
                webhook_deliveries=_every(DeliveryStatus, self._deliveries.read(session)),
            )

    def queue_health(self) -> QueueHealth:
        """Return the numbers that show whether the queue moves."""
        with self._database.transaction() as session:
            return overview.queue_health(session, self._alive_seconds)

    def recent_workers(self) -> tuple[WorkerView, ...]:
        """Return the workers that reported within the last lease."""
        with self._database.transaction() as session:
            found = overview.workers_since(session, self._alive_seconds)
            busy = overview.busy_owners(session)
            views = (WorkerView.model_validate(worker, from_attributes=True) for worker in found)
            return tuple(view.model_copy(update={"busy": view.owner in busy}) for view in views)


class _CachedCount:
    """A count that is repeated only when that is cheap."""

    def __init__(self, count: Callable[[Session], Counts], clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._latest: Counts = {}
        self._until = float("-inf")

    def read(self, session: Session) -> Counts:
        began = self._clock()
        if began >= self._until:
            self._latest = self._count(session)
            now = self._clock()
            # After a fast count ``_until`` is already over at the next call, which counts again.
            self._until = now + _COST * (now - began) if now - began > _CHEAP_SECONDS else now
        return self._latest


def _every(statuses: type[StrEnum], counts: Counts) -> dict[str, int]:
    return {status.value: counts.get(status.value, 0) for status in statuses}
