"""Stored JSON that several resources show, as types for the API's document: problems and webhook messages."""

from typing import Annotated, Literal

from pydantic import Field

from jobs.kit.errors import Category
from jobs.kit.views import Timestamp, View


class JobProblemView(View):
    """Why a job or a publication failed: the members of RFC 9457, with a category and a remedy."""

    type: Annotated[str, Field(examples=["urn:quantry:problem:unsupported_architecture"])]
    """The name of the problem."""
    title: Annotated[str, Field(examples=["Unsupported architecture"])]
    """The problem in a few words."""
    status: Annotated[int, Field(ge=400, le=599, examples=[422])]
    """The HTTP status that fits."""
    detail: Annotated[str, Field(examples=["This architecture is not supported."])]
    """What is wrong."""
    instance: Annotated[str, Field(examples=["/v1/jobs/job_01"])]
    """The path of the job or publication."""
    code: Annotated[str, Field(examples=["unsupported_architecture"])]
    """The code of the problem, for programs."""
    category: Category
    """Whose fault it is: the request or the model, the service, or a lack of room."""
    hint: Annotated[str, Field(examples=["GET /v1/capabilities lists the architectures."])]
    """What to do about it."""


class MessageLinks(View):
    """Where to read more."""

    self: Annotated[str, Field(examples=["/v1/jobs/job_01"])]
    """The object itself."""
    events: Annotated[str | None, Field(examples=["/v1/jobs/job_01/events"])] = None
    """The events of a job."""
    artifacts: Annotated[str | None, Field(examples=["/v1/jobs/job_01/artifacts"])] = None
    """The files of a job."""
    job: Annotated[str | None, Field(examples=["/v1/jobs/job_01"])] = None
    """The job of a publication."""


class MessageData(View):
    """The object that an event is about. What a receiver needs more, it asks the service for."""

    id: Annotated[str, Field(examples=["job_01"])]
    """Its id."""
    object: Literal["quantization.job", "publication", "webhook.endpoint"]
    """What it is."""
    status: Annotated[str, Field(examples=["succeeded"])]
    """Its status."""
    attempt: Annotated[int | None, Field(examples=[1])] = None
    """The number of attempts of a job."""
    job_id: Annotated[str | None, Field(examples=["job_01"])] = None
    """The job of a publication."""
    links: MessageLinks
    """Where to read more."""


class WebhookMessage(View):
    """The body of a message."""

    type: Annotated[str, Field(examples=["job.succeeded"])]
    """The event."""
    timestamp: Timestamp
    """When it happened."""
    data: MessageData
    """What it is about."""
