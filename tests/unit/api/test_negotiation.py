"""Accept, Content-Type and If-None-Match."""

import pytest

from api.negotiation import media_type, none_match, preferred

_OFFERED = ("application/json", "text/event-stream")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0.1, */*", "application/json"),
        ("application/json;q=0, */*;q=0.1", "text/event-stream"),
        ("text/event-stream; charset=utf-8; q=0.9, application/json;q=0.8", "text/event-stream"),
        ("image/png", "application/json"),
        (";;;,,,q=", "application/json"),
        ("text/event-stream;q=nonsense", "application/json"),
    ],
)
def test_preferred(accept: str | None, expected: str) -> None:
    assert preferred(accept, _OFFERED) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("text/json", False),
        ("application/merge-patch+json", False),
        ("application/jsonx", False),
        ("", False),
        (";", False),
    ],
)
def test_media_type(header: str, expected: bool) -> None:
    assert (media_type(header) == "application/json") is expected


@pytest.mark.parametrize(
    ("header", "stale"),
    [
        (None, True),
        ("*", False),
        ('"7"', False),
        ('W/"7"', False),
        ('"1", "7"', False),
        ('"1","2"', True),
        ("7", True),
        ('"77"', True),
    ],
)
def test_none_match(header: str | None, stale: bool) -> None:
    assert none_match(header, '"7"') is stale
