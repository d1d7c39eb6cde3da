"""What a webhook endpoint can be told, and in which words.

The payload is thin: what happened to which object, and where to look. A receiver that needs more asks the service, and
one that must not learn more gets nothing that it could leak.
"""

import json
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from jobs.kit.states import JobStatus
from jobs.repository.models import Job, Publication

EventType = Literal[
    "job.queued",
    "job.running",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "publication.succeeded",
    "publication.failed",
]
"""What an endpoint can subscribe to. ``job.queued`` also follows a crash or a retry; ``cancelling`` is not told."""

EVENT_TYPES: Final[frozenset[str]] = frozenset(get_args(EventType))

DEFAULT_EVENTS: Final[tuple[EventType, ...]] = (
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "publication.succeeded",
    "publication.failed",
)
"""The ends of things, which are what most receivers wait for."""

TEST_EVENT: Final = "webhook.test"


def job_data(job: Job) -> dict[str, Any]:
    """A job, as its events name it."""
    path = f"/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "object": "quantization.job",
        "status": JobStatus(job.status).value,
        "attempt": job.attempt,
        "links": {"self": path, "events": f"{path}/events", "artifacts": f"{path}/artifacts"},
    }


def publication_data(publication: Publication) -> dict[str, Any]:
    """A publication, as its events name it."""
    return {
        "id": publication.id,
        "object": "publication",
        "status": publication.status,
        "job_id": publication.job_id,
        "links": {"self": f"/v1/publications/{publication.id}", "job": f"/v1/jobs/{publication.job_id}"},
    }


def test_data(endpoint_id: str) -> dict[str, Any]:
    """What a test call brings."""
    return {
        "id": endpoint_id,
        "object": "webhook.endpoint",
        "status": "test",
        "links": {"self": f"/v1/webhooks/{endpoint_id}"},
    }


def payload(event_type: str, moment: datetime, data: dict[str, Any]) -> str:
    """The body of a message: exactly these characters are stored, signed and sent, however often."""
    timestamp = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": event_type, "timestamp": timestamp, "data": data}, separators=(",", ":"))
