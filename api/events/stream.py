"""A job's event log as server-sent events, by polling in a thread. No connection is held between two polls."""

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
# Whether a silent job is over is asked once in _POLLS_PER_CHECK polls, about every ten seconds.
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
    """Reading one job's log: the events after an id, oldest first, and whether the job is over."""

    read: Callable[[int], tuple[EventView, ...]]
    is_over: Callable[[], bool]
    limiter: anyio.CapacityLimiter


def event_stream(source: EventLog, after: int) -> EventSourceResponse:
    """Stream the events after ``after`` when they are written, a comment every 15 seconds, and the end after ``done``.

    A ``done`` that was followed by a retry is left out, because clients take it for the end of the stream.
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
    """Yield messages until ``done``, until the job is deleted, or until the server stops (then with a retry time)."""
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
            # This sleeps until the next poll, and wakes at once when the server stops.
            with anyio.move_on_after(_POLL_SECONDS):
                await stopping.wait()
    yield ServerSentEvent(comment="this server is being stopped", retry=_RETRY_MILLISECONDS, sep=_LINE_END)


async def _next_batch(source: EventLog, after: int, idle: int) -> tuple[EventView, ...] | None:
    """Return what was written after ``after``, possibly nothing yet; None when nothing more can come."""
    try:
        # The order matters: an event that is written between the two calls is still read.
        over = idle % _POLLS_PER_CHECK == _POLLS_PER_CHECK - 1 and await _in_thread(source, source.is_over)
        events = await _in_thread(source, partial(source.read, after))
    except NotFound:
        return None
    except Unavailable:
        log.warning("event_read_failed")
        # An outage does not end the stream: the client would only reconnect and ask again.
        await anyio.sleep(_OUTAGE_SECONDS)
        return ()
    return None if over and not events else events


async def _is_last(source: EventLog, done: int) -> bool:
    """Return whether the job is over with the event ``done``, which no retry followed."""
    while True:
        try:
            # The order matters: the events of a retry between the two calls are still read.
            return await _in_thread(source, source.is_over) and not await _in_thread(source, partial(source.read, done))
        except NotFound:
            return True
        except Unavailable:
            await anyio.sleep(_OUTAGE_SECONDS)


async def _in_thread(source: EventLog, call: Callable[[], Result]) -> Result:
    # With a limiter of their own, streams can not take the threads that endpoints need.
    return await anyio.to_thread.run_sync(call, limiter=source.limiter)


def _message(event: EventView) -> ServerSentEvent:
    # ASCII only: some clients also split lines at U+2028 and similar characters.
    data = json.dumps(event.model_dump(mode="json")["data"], allow_nan=False)
    return ServerSentEvent(data=data, event=event.type, id=str(event.id), sep=_LINE_END)
