"""A parser of server-sent events. Source: the HTML standard, "event stream interpretation"."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSentEvent:
    """One event. ``id`` is the last id so far, ``retry`` the reconnection time in seconds, if the server sent one."""

    event: str
    data: str
    id: str | None
    retry: float | None


def parse_events(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Yield the events of ``lines`` (without line ends). An event that is cut short by the stream's end is dropped."""
    event, data, last_id, retry = "message", list[str](), None, None
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent(event=event, data="\n".join(data), id=last_id, retry=retry)
            # The id and the reconnection time stay for later events, as in the standard.
            event, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "id" and "\0" not in value:
            last_id = value
        elif field == "retry" and value.isdecimal():
            # Milliseconds on the wire.
            retry = int(value) / 1000
