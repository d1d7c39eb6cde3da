"""The event stream's grammar."""

from quantry.sse import ServerSentEvent, parse_events


def parse(text: str) -> list[ServerSentEvent]:
    return list(parse_events(text.split("\n")))


def test_event_with_all_fields_and_a_comment() -> None:
    (event,) = parse(": heartbeat\nid: 7\nevent: progress\nretry: 1500\ndata: {}\n\n")
    assert event == ServerSentEvent(event="progress", data="{}", id="7", retry=1.5)


def test_data_lines_are_joined_and_one_space_is_dropped() -> None:
    (event,) = parse("data:a\ndata:  b\ndata\n\n")
    assert (event.event, event.data) == ("message", "a\n b\n")


def test_an_id_stays_for_the_next_event_and_an_event_name_does_not() -> None:
    first, second = parse("id: 1\nevent: log\ndata: x\n\ndata: y\n\n")
    assert (first.id, second.id) == ("1", "1")
    assert (first.event, second.event) == ("log", "message")


def test_an_event_cut_short_is_dropped() -> None:
    assert [event.data for event in parse("data: whole\n\nid: 2\ndata: half")] == ["whole"]


def test_heartbeats_alone_are_no_events() -> None:
    assert parse(": heartbeat\n\n: heartbeat\n\n") == []
