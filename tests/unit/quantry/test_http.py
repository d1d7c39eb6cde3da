"""Events that resume, waiting, and pages."""

import pytest

from quant_engine.policy import JobRequest
from quantry import Quantry, QuantryError
from tests.unit.quantry.conftest import Answer, ScriptedServer, job_body, json_answer


def stream(*events: tuple[int, str], promised: int | None = None) -> Answer:
    """An event stream; with ``promised`` bytes announced it breaks off after the events."""
    body = "".join(f'id: {number}\nevent: {kind}\ndata: {{"n": {number}}}\n\n' for number, kind in events).encode()
    headers = {"Content-Type": "text/event-stream"}
    if promised is not None:
        headers["Content-Length"] = str(promised)
    return Answer(headers=headers, body=body)


def test_a_broken_stream_is_resumed_behind_the_last_event(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [
        stream((1, "job.status"), (2, "progress"), promised=10_000),
        Answer(drop=True),
        stream((2, "progress"), (3, "layer.completed"), (4, "done"), (5, "never read")),
    ]
    events = list(client.events("job_1"))
    assert [(event.id, event.type, event.data) for event in events] == [
        (1, "job.status", {"n": 1}),
        (2, "progress", {"n": 2}),
        (3, "layer.completed", {"n": 3}),
        (4, "done", {"n": 4}),
    ]
    assert [request.headers.get("last-event-id") for request in server.received] == [None, "2", "2"]


def test_a_stream_that_ends_without_done_is_opened_again(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [stream((1, "progress")), stream((2, "done"))]
    assert [event.id for event in client.events("job_1")] == [1, 2]


def test_nothing_more_to_say_about_a_job_that_is_over(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [Answer(status=204), json_answer(job_body("succeeded"))]
    assert list(client.events("job_1", after=9)) == []
    assert server.received[0].headers["last-event-id"] == "9"


def test_a_stream_that_never_comes_back(client: Quantry, server: ScriptedServer, naps: list[float]) -> None:
    server.answers = [stream((1, "progress"), promised=10_000)] + [Answer(drop=True)] * 4
    events = client.events("job_1")
    assert next(events).id == 1
    with pytest.raises(QuantryError, match="connection_lost") as caught:
        next(events)
    assert "goes on" in str(caught.value.hint)
    assert len(naps) == 4


def test_the_reconnection_time_the_service_asks_for(client: Quantry, server: ScriptedServer, naps: list[float]) -> None:
    told = Answer(body=b"retry: 3000\nid: 1\nevent: log\ndata: {}\n\n")
    server.answers = [told, stream((2, "done"))]
    assert len(list(client.events("job_1"))) == 2
    assert naps == [3.0]


def test_events_of_a_missing_job(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [json_answer({"code": "job_not_found", "detail": "There is no job."}, 404)]
    with pytest.raises(QuantryError, match="job_not_found"):
        list(client.events("job_1"))


def test_wait_asks_with_the_etag_and_as_often_as_told(
    client: Quantry, server: ScriptedServer, naps: list[float]
) -> None:
    server.answers = [
        json_answer(job_body(), ETag='"1"', **{"Retry-After": "2"}),
        Answer(status=304, headers={"Retry-After": "600"}),
        json_answer(job_body("failed", error={"code": "crash_loop"}), ETag='"2"'),
    ]
    job = client.wait("job_1")
    assert job.status == "failed"
    assert [request.headers.get("if-none-match") for request in server.received] == [None, '"1"', '"1"']
    assert naps == [2.0, 5.0]


def test_wait_gives_up_but_the_job_does_not(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body())]
    with pytest.raises(QuantryError, match="timeout"):
        client.wait("job_1", timeout_seconds=0)


def test_pages_are_followed_to_the_end(client: Quantry, server: ScriptedServer) -> None:
    row = {"name": "a", "block": 0, "role": "down", "scheme": "W4A4", "transform": "none", "added_later": 1}
    server.answers = [
        json_answer({"data": [row, row], "has_more": True, "next_cursor": "c1"}),
        json_answer({"data": [row], "has_more": False, "next_cursor": None}),
    ]
    assert len(client.layers("job_1", sort="-error")) == 3
    assert server.received[0].path.endswith("sort=-error&limit=100")
    assert server.received[1].path.endswith("&after=c1")


def test_a_typed_request_sends_only_what_was_said(client: Quantry, server: ScriptedServer) -> None:
    server.answers = [json_answer(job_body("queued"), 202)]
    client.submit(JobRequest.model_validate({"model": {"source": "local", "id": "tiny"}, "policy": {"preset": "p"}}))
    assert server.received[0].body == b'{"model":{"source":"local","id":"tiny"},"policy":{"preset":"p"}}'
