"""Responses made of views. NaN and infinity become null, because JSON does not have them."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response

from jobs.job.views import JobView
from jobs.kit.states import JobStatus

_POLL_SECONDS = {JobStatus.QUEUED: 2, JobStatus.RUNNING: 2, JobStatus.CANCELLING: 1}


def json_view(view: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``view`` as a JSON response."""
    # Not JSONResponse: pydantic's serializer writes NaN as null and formats the times.
    return Response(view.model_dump_json(), status, dict(headers or {}), media_type="application/json")


def job_headers(job: JobView) -> dict[str, str]:
    """Return the validator of a job and, while it still changes, the time after which to ask again."""
    headers = {"ETag": job.etag, "Cache-Control": "private, no-cache"}
    if job.status in _POLL_SECONDS:
        headers["Retry-After"] = str(_POLL_SECONDS[job.status])
    return headers


def accepted(job: JobView) -> Response:
    """Return 202 with the job's location and the time after which to ask for it."""
    headers = {**job_headers(job), "Location": job.links.self}
    headers.setdefault("Retry-After", "1")
    return json_view(job, 202, headers)
