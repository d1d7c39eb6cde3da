"""The base types of views. Views are frozen models that render exactly the JSON of the HTTP contract."""

from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer

Item = TypeVar("Item", bound=BaseModel)


def _as_utc(value: datetime) -> str:
    # One form for every timestamp: UTC, with milliseconds and "Z".
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_as_utc, return_type=str, when_used="json")]


class View(BaseModel):
    """Base of every view: immutable. Render with ``model_dump(mode="json")``."""

    model_config = ConfigDict(frozen=True)


class Page(View, Generic[Item]):
    """One page of a list. ``next_cursor`` is the ``after`` of the next request; it is null on the last page."""

    object: Literal["list"] = "list"
    data: tuple[Item, ...]
    has_more: bool
    next_cursor: str | None


class QueueHealth(View):
    """The numbers for readiness and metrics: does the queue move? Ages are in seconds, by the database's clock."""

    queued: int
    running: int
    oldest_queued_seconds: float | None
    oldest_claimable_seconds: float | None = None  # without jobs that wait for their next attempt
    workers: int
    seconds_since_claim: float | None
