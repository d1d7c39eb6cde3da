"""Server-sent events: from lines of text to events, as the HTML standard's "event stream interpretation" says."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSentEvent:
    """One dispatched event; ``id`` is the last id seen so far, ``retry`` the reconnection time in seconds, if told."""

    event: str
    data: str
    id: str | None
    retry: float | None


def parse_events(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Events of a stream of ``lines`` without their line ends. An event that the stream cuts short is dropped."""
    event, data, last_id, retry = "message", list[str](), None, None
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent(event=event, data="\n".join(data), id=last_id, retry=retry)
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
            retry = int(value) / 1000
