"""The event log over HTTP: pages, and the live stream on real sockets."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from api.events import stream as stream_module
from jobs.job.lease import ProgressReport
from jobs.kit.states import StageStatus
from jobs.repository.database import Database
from tests.integration.api.conftest import Hands

Submit = Callable[..., dict[str, Any]]
_LIVE = {"Accept": "text/event-stream"}


def _messages(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The fields of each message; a comment is a message with only a ``comment``."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(":")
        if line:
            fields[name or "comment"] = value.strip()
        elif fields:
            yield fields
            fields = {}


def test_pages(client: httpx.Client, finished: str) -> None:
    path = f"/v1/jobs/{finished}/events"
    page = client.get(path).json()
    assert [event["id"] for event in page["data"]] == list(range(1, len(page["data"]) + 1))
    assert page["data"][0]["type"] == "job.status"
    assert page["data"][-1]["type"] == "done"
    later = client.get(path, params={"after": 1, "limit": 1}).json()
    assert [event["id"] for event in later["data"]] == [2]
    assert later["has_more"] is True
    assert client.get(path, params={"after": -1}).status_code == 422
    assert client.get(path, params={"after": 2**40}).status_code == 422


def test_a_stream_follows_a_job_to_its_end(client: httpx.Client, submit: Submit, hands: Hands) -> None:
    job_id = submit()["id"]

    def work() -> None:
        time.sleep(0.3)
        claim = hands.claim()
        hands.leases.record_stage(claim, "load", StageStatus.RUNNING)
        hands.leases.append_event(claim, "log", {"message": "two\nlines, \u2028 and ünïcode"})
        time.sleep(0.8)
        hands.leases.record_progress(claim, ProgressReport(fraction=0.5, stage="load"))
        hands.publish(claim)

    worker = threading.Thread(target=work)
    worker.start()
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=_LIVE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        live = [message for message in _messages(response) if "comment" not in message]
    worker.join()
    logged = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [(int(message["id"]), message["event"]) for message in live] == [(e["id"], e["type"]) for e in logged]
    assert [json.loads(message["data"]) for message in live] == [event["data"] for event in logged]
    assert live[-1]["event"] == "done"
    assert {"job.status", "stage.status", "log", "progress"} <= {message["event"] for message in live}


def test_a_stream_goes_on_where_a_retry_went_on(client: httpx.Client, submit: Submit, hands: Hands) -> None:
    job_id = submit()["id"]
    path = f"/v1/jobs/{job_id}"
    assert client.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert client.post(f"{path}/retry").status_code == 202
    hands.publish(hands.claim())
    logged = [event["type"] for event in client.get(f"{path}/events").json()["data"]]
    assert logged.count("done") == 2
    with client.stream("GET", f"{path}/events", headers=_LIVE) as response:
        live = [message for message in _messages(response) if "comment" not in message]
    told = [json.loads(message["data"])["status"] for message in live if message["event"] == "job.status"]
    assert told == ["queued", "cancelled", "queued", "running", "succeeded"]
    assert [message["event"] for message in live].count("done") == 1
    assert (live[-1]["event"], int(live[-1]["id"])) == ("done", len(logged))


def test_a_stream_resumes_behind_the_last_event_id(client: httpx.Client, finished: str) -> None:
    path = f"/v1/jobs/{finished}/events"
    total = len(client.get(path).json()["data"])
    with client.stream("GET", f"{path}?after=0", headers={**_LIVE, "Last-Event-ID": "2"}) as response:
        ids = [int(message["id"]) for message in _messages(response)]
    assert ids == list(range(3, total + 1))
    with client.stream("GET", f"{path}?after={total - 1}", headers=_LIVE) as response:
        assert [message["event"] for message in _messages(response)] == ["done"]
    over = client.get(path, headers={**_LIVE, "Last-Event-ID": str(total)})
    assert (over.status_code, over.content) == (204, b"")
    wrong = client.get(path, headers={**_LIVE, "Last-Event-ID": "zz-not-a-number"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "?last-event-id")
    assert "zz-not" not in wrong.text


def test_a_missing_job_has_no_stream(client: httpx.Client) -> None:
    assert client.get("/v1/jobs/job_" + "0" * 24 + "/events", headers=_LIVE).status_code == 404


def test_heartbeats(client: httpx.Client, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream_module.HEARTBEAT_SECONDS == 15
    monkeypatch.setattr(stream_module, "HEARTBEAT_SECONDS", 0.2)
    with client.stream("GET", f"/v1/jobs/{submit()['id']}/events", headers=_LIVE) as response:
        messages = _messages(response)
        assert next(messages)["event"] == "job.status"
        assert next(messages) == {"comment": "heartbeat"}
        assert next(messages) == {"comment": "heartbeat"}


def test_a_deleted_job_ends_its_stream(
    client: httpx.Client, submit: Submit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_POLL_SECONDS", 0.05)
    job = submit()
    with client.stream("GET", job["links"]["events"], headers=_LIVE) as response:
        messages = _messages(response)
        assert next(messages)["event"] == "job.status"
        with database.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM jobs")
        assert list(messages) == []


def test_a_stream_beyond_the_log_ends_with_its_job(
    client: httpx.Client, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_POLL_SECONDS", 0.02)
    job = submit()
    with client.stream("GET", job["links"]["events"], headers={**_LIVE, "Last-Event-ID": "1000"}) as response:
        client.post(f"{job['links']['self']}/cancel")
        assert list(_messages(response)) == []


@contextmanager
def _counting_polls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    polls: list[float] = []
    original = stream_module._in_thread

    async def counted(*arguments: Any) -> Any:
        polls.append(time.monotonic())
        return await original(*arguments)

    monkeypatch.setattr(stream_module, "_in_thread", counted)
    monkeypatch.setattr(stream_module, "_POLL_SECONDS", 0.05)
    yield polls


def test_polling_stops_when_the_client_leaves(
    client: httpx.Client, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit()
    with _counting_polls(monkeypatch) as polls:
        with client.stream("GET", job["links"]["events"], headers=_LIVE) as response:
            messages = _messages(response)
            next(messages)
            time.sleep(0.3)
        assert len(polls) > 2
        time.sleep(0.5)
        seen = len(polls)
        time.sleep(0.5)
        assert len(polls) == seen


def test_idle_streams_hold_no_database_connection(url: str, submit: Submit, database: Database) -> None:
    path = submit()["links"]["events"]
    query = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(state, 'idle in transaction')"
    with httpx.Client(base_url=url, limits=httpx.Limits(max_connections=100)) as client:
        opened = [client.send(client.build_request("GET", path, headers=_LIVE), stream=True) for _ in range(50)]
        try:
            # Fifty streams over a pool of twenty: other requests still get through.
            assert client.get("/v1/jobs").status_code == 200
            held = []
            for _ in range(30):
                with database.engine.connect() as connection:
                    held.append(connection.exec_driver_sql(query).scalar_one())
                time.sleep(0.02)
        finally:
            for response in opened:
                response.close()
    assert min(held) == 0
    assert max(held) <= 4  # those that poll at that moment
