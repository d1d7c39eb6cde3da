"""A job's event log as server-sent events: poll the database in a thread, hold no connection between two polls."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent

from api.negotiation import VARY
from jobs.job.views import EventView
from jobs.kit.errors import NotFound, Unavailable

HEARTBEAT_SECONDS: Final = 15
_POLL_SECONDS: Final = 0.5
_OUTAGE_SECONDS: Final = 3.0
_GRACE_SECONDS: Final = 5.0
_RETRY_MILLISECONDS: Final = 2000
_POLLS_PER_CHECK: Final = 20
_LINE_END: Final = "\n"

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EventLog:
    """How to read one job's log: the events after an id, oldest first, and whether the job is over."""

    read: Callable[[int], tuple[EventView, ...]]
    is_over: Callable[[], bool]
    limiter: anyio.CapacityLimiter


def event_stream(source: EventLog, after: int) -> EventSourceResponse:
    """The events after ``after`` as they are written, a comment every 15 seconds, the end after ``done``.

    A ``done`` that a retry went on from is left out: whoever reads a stream takes it for the end.
    """
    stopping = anyio.Event()
    return EventSourceResponse(
        _messages(source, after, stopping),
        headers=VARY,
        ping=HEARTBEAT_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep=_LINE_END),
        sep=_LINE_END,
        shutdown_event=stopping,
        shutdown_grace_period=_GRACE_SECONDS,
    )


async def _messages(source: EventLog, after: int, stopping: anyio.Event) -> AsyncIterator[ServerSentEvent]:
    """Until ``done``, the end of the job's rows, or that of the server: then with a word on when to come back."""
    idle = 0
    while not stopping.is_set():
        events = await _next_batch(source, after, idle)
        if events is None:
            return
        for event in events:
            after = event.id
            if event.type != "done":
                yield _message(event)
            elif await _is_last(source, event.id):
                yield _message(event)
                return
        idle = 0 if events else idle + 1
        if idle:
            with anyio.move_on_after(_POLL_SECONDS):
                await stopping.wait()
    yield ServerSentEvent(comment="this server is being stopped", retry=_RETRY_MILLISECONDS, sep=_LINE_END)


async def _next_batch(source: EventLog, after: int, idle: int) -> tuple[EventView, ...] | None:
    """What was written after ``after``, perhaps nothing yet; None when nothing more can come."""
    try:
        # Asked before reading: what is written between the two is still read.
        over = idle % _POLLS_PER_CHECK == _POLLS_PER_CHECK - 1 and await _in_thread(source, source.is_over)
        events = await _in_thread(source, partial(source.read, after))
    except NotFound:
        return None
    except Unavailable:
        log.warning("event_read_failed")
        await anyio.sleep(_OUTAGE_SECONDS)
        return ()
    return None if over and not events else events


async def _is_last(source: EventLog, done: int) -> bool:
    """Whether the job is over with the event ``done``, or a retry went on from it."""
    while True:
        try:
            # Asked before reading: a retry between the two is still read.
            return await _in_thread(source, source.is_over) and not await _in_thread(source, partial(source.read, done))
        except NotFound:
            return True
        except Unavailable:
            await anyio.sleep(_OUTAGE_SECONDS)


async def _in_thread(source: EventLog, call: Callable[[], Result]) -> Result:
    return await anyio.to_thread.run_sync(call, limiter=source.limiter)


def _message(event: EventView) -> ServerSentEvent:
    # ASCII: some clients split lines at U+2028 and its kin as well.
    data = json.dumps(event.model_dump(mode="json")["data"], allow_nan=False)
    return ServerSentEvent(data=data, event=event.type, id=str(event.id), sep=_LINE_END)
