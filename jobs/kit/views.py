"""The base types of views. Views are frozen models that render exactly the JSON of the HTTP contract."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

Item = TypeVar("Item", bound=BaseModel)


def _as_utc(value: datetime) -> str:
    # One form for every timestamp: UTC, with milliseconds and "Z".
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    datetime,
    PlainSerializer(_as_utc, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


@dataclass(frozen=True)
class Described:
    """Annotates stored JSON that is shown as it is: the API's document has the schema of ``model`` for it.

    The value itself is not checked, because a runner of another release may have written it.
    """

    model: type[BaseModel]

    def __get_pydantic_json_schema__(self, _schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of the model."""
        return handler(self.model.__pydantic_core_schema__)


class View(BaseModel):
    """Base of every view: immutable. Render with ``model_dump(mode="json")``.

    The text under a field is its description in the API's document.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Page(View, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    """What this is."""
    data: tuple[Item, ...]
    """The entries."""
    has_more: bool
    """Whether there are more pages."""
    next_cursor: Annotated[str | None, Field(examples=["next"])]
    """The ``after`` of the next request. Null on the last page."""


class QueueHealth(View):
    """The numbers for readiness and metrics: does the queue move? Ages are in seconds, by the database's clock."""

    queued: int
    running: int
    oldest_queued_seconds: float | None
    oldest_claimable_seconds: float | None = None  # without jobs that wait for their next attempt
    workers: int
    seconds_since_claim: float | None
