"""The endpoint ``/v1/jobs/{id}/events``: the event log as pages or as a live stream."""

from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from api.deps import Accept, JobId, Queries, State, Tenant
from api.events.stream import EventLog, event_stream
from api.negotiation import VARY, preferred
from api.responses import json_view
from jobs.job.views import EventView
from jobs.kit.views import Page
from quant_engine.policy.fields import MAX_INT32

router = APIRouter(prefix="/v1/jobs", tags=["events"])

_BATCH = 100
_STREAM: Final = (
    "Server-sent events: id is an EventView's id, event its type, and data its data. The last one is 'done'."
)
_SequenceNumber = Annotated[int, Query(ge=0, le=MAX_INT32, description="Only events with a greater id.")]


@router.get(
    "/{job_id}/events",
    responses={
        200: {
            "model": Page[EventView],
            "content": {"text/event-stream": {"schema": {"type": "string", "description": _STREAM}}},
            "description": "A page of events, or with Accept: text/event-stream the live log until the event 'done'.",
        },
        204: {"description": "As a stream: the job is over and has no further events. Do not reconnect."},
    },
)
def list_events(
    job_id: JobId,
    state: State,
    queries: Queries,
    tenant: Tenant,
    *,
    after: _SequenceNumber = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many events a page has at most.")] = 100,
    accept: Accept = None,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_INT32, description="The id of the last event that a stream has received.")
    ] = None,
) -> Response:
    """List what happened to a job, in order. A stream resumes after ``Last-Event-ID``."""
    # JSON comes first: it is the answer for clients that accept anything.
    if preferred(accept, ("application/json", "text/event-stream")) == "application/json":
        return json_view(queries.list_events(job_id, tenant=tenant, after=after, limit=limit), headers=VARY)

    def read(behind: int) -> tuple[EventView, ...]:
        return queries.list_events(job_id, tenant=tenant, after=behind, limit=_BATCH).data

    def is_over() -> bool:
        return queries.get_job(job_id, tenant=tenant).is_terminal

    # A reconnecting client sends Last-Event-ID; its URL still has the old ``after``.
    behind = after if last_event_id is None else last_event_id
    # Browsers reconnect after every end of a stream. Only the status 204 stops them.
    if is_over() and not read(behind):
        return Response(status_code=204)
    return event_stream(EventLog(read, is_over, state.stream_limiter), behind)
