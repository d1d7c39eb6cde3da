"""The request bodies of ``POST /v1/webhooks`` and ``PATCH /v1/webhooks/{id}``."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from jobs.repository.outbox_events import DEFAULT_EVENTS, EventType
from jobs.webhooks.urls import MAX_URL
from quant_engine.policy.fields import Flag, Frozen, Name

_MAX_DESCRIPTION = 256


def _each_once(events: tuple[EventType, ...]) -> tuple[EventType, ...]:
    if len(set(events)) < len(events):
        raise ValueError("must name each event once; remove the repetition")
    return events


Url = Annotated[Name, Field(max_length=MAX_URL, examples=["https://example.com/hook"])]
Events = Annotated[
    tuple[EventType, ...],
    Field(min_length=1, max_length=16, examples=[["job.succeeded"]], fail_fast=True),
    AfterValidator(_each_once),
]
Description = Annotated[Name, Field(max_length=_MAX_DESCRIPTION, examples=["The team channel."])]


class NewWebhook(Frozen):
    """An endpoint for events."""

    url: Url
    """Where messages are sent."""
    events: Events = DEFAULT_EVENTS
    """The events that it gets. Left out: the ends of jobs and publications."""
    description: Description | None = None
    """What it is for."""


class WebhookChanges(Frozen):
    """The changes of an endpoint. Enabling it again resets the record of its failures."""

    url: Url | None = None
    """Where messages are sent."""
    events: Events | None = None
    """The events that it gets."""
    description: Description | None = None
    """What it is for."""
    enabled: Annotated[Flag | None, Field(examples=[True])] = None
    """Whether it gets messages."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_null(cls, value: Any) -> Any:
        if isinstance(value, dict) and any(item is None for item in value.values()):
            raise ValueError("must not be null; leave out what stays as it is")
        return value

    @model_validator(mode="after")
    def _something_changes(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("must change something: url, events, description or enabled")
        return self
