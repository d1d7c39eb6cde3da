"""The events of webhooks and the text of their messages.

The payload is small: what happened to which object, and where to read more. A receiver that needs more asks the
service. A receiver that must not know more gets nothing that it could leak.
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
"""The events to subscribe to. ``job.queued`` also follows a crash or a retry; ``cancelling`` is no event."""

EVENT_TYPES: Final[frozenset[str]] = frozenset(get_args(EventType))

DEFAULT_EVENTS: Final[tuple[EventType, ...]] = (
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "publication.succeeded",
    "publication.failed",
)
"""The ends of jobs and publications, which most receivers wait for."""

TEST_EVENT: Final = "webhook.test"


def job_data(job: Job) -> dict[str, Any]:
    """Return the description of a job in its events."""
    path = f"/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "object": "quantization.job",
        "status": JobStatus(job.status).value,
        "attempt": job.attempt,
        "links": {"self": path, "events": f"{path}/events", "artifacts": f"{path}/artifacts"},
    }


def publication_data(publication: Publication) -> dict[str, Any]:
    """Return the description of a publication in its events."""
    return {
        "id": publication.id,
        "object": "publication",
        "status": publication.status,
        "job_id": publication.job_id,
        "links": {"self": f"/v1/publications/{publication.id}", "job": f"/v1/jobs/{publication.job_id}"},
    }


def test_data(endpoint_id: str) -> dict[str, Any]:
    """Return the data of a test message."""
    return {
        "id": endpoint_id,
        "object": "webhook.endpoint",
        "status": "test",
        "links": {"self": f"/v1/webhooks/{endpoint_id}"},
    }


def payload(event_type: str, moment: datetime, data: dict[str, Any]) -> str:
    """Return the body of a message. Exactly this text is stored, signed and sent, in every attempt."""
    timestamp = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": event_type, "timestamp": timestamp, "data": data}, separators=(",", ":"))
