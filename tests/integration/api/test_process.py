"""The API as a process of its own: killed, stopped, its log, and its broker killed under it."""

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.settings import Settings
from tests.api_process import Process, api_process
from tests.integration.api.conftest import BODY, Hands

_ROOT = Path(__file__).resolve().parents[3]
_KEY = "operator-key-of-this-test"


def test_a_job_outlives_the_api_that_took_it(settings: Settings, tmp_path: Path, hands: Hands) -> None:
    """The process is killed the moment it has answered, with a broker that never takes the nudge."""
    for attempt in range(3):
        with api_process(settings, tmp_path / "log", QUANTRY_BROKER_URL="redis://127.0.0.1:1/0") as process:
            job = httpx.post(f"{process.url}/v1/jobs", json=BODY).json()
            process.signal(signal.SIGKILL)
        claim = hands.claim()
        assert (claim.job_id, claim.attempt) == (job["id"], 1), attempt


def test_stop_ends_streams_and_answers_what_runs(settings: Settings, tmp_path: Path) -> None:
    with api_process(settings, tmp_path / "log") as process:
        job = httpx.post(f"{process.url}/v1/jobs", json=BODY).json()
        with httpx.stream(
            "GET", f"{process.url}{job['links']['events']}", headers={"Accept": "text/event-stream"}
        ) as response:
            lines = response.iter_lines()
            assert next(lines) == "id: 1"
            assert process.signal(signal.SIGTERM) < 5
            list(lines)


def test_the_log_is_json_with_request_ids_and_without_secrets(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    sent = "zzSentinelValue42"
    with api_process(settings, log, QUANTRY_API_KEY=_KEY) as process:
        headers = {"Authorization": f"Bearer {_KEY}", "X-Request-ID": "trace-me"}
        assert httpx.get(f"{process.url}/v1/jobs?model={sent}", headers=headers).status_code == 200
        assert httpx.get(f"{process.url}/v1/jobs", headers={"Authorization": f"Bearer {sent}"}).status_code == 401
        bad = httpx.post(f"{process.url}/v1/jobs", json={"model": {"credential": sent}}, headers=headers)
        assert bad.status_code == 422
        process.signal(signal.SIGTERM)
    text = log.read_text()
    events: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    requests = [event for event in events if event["event"] == "request_ended" and event["route"] == "/v1/jobs"]
    assert [(event["method"], event["status"]) for event in requests] == [("GET", 200), ("GET", 401), ("POST", 422)]
    assert requests[0]["request_id"] == "trace-me"
    assert {"time", "level", "milliseconds"} <= set(requests[0])
    for secret in (_KEY, sent, str(settings.database_url and settings.database_url.get_secret_value())):
        assert secret not in text


@pytest.mark.parametrize("broker", ["absent", "silent"])
def test_a_broken_broker_slows_no_request(settings: Settings, tmp_path: Path, broker: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if broker == "silent":  # takes connections, never answers
            listener.listen(64)
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        with api_process(settings, tmp_path / "log", QUANTRY_BROKER_URL=url) as process, httpx.Client() as client:
            client.get(f"{process.url}/v1/jobs")
            for _ in range(5):
                began = time.monotonic()
                assert client.post(f"{process.url}/v1/jobs", json=BODY).status_code == 202
                assert time.monotonic() - began < 1
            checks = client.get(f"{process.url}/readyz").json()["checks"]
            assert checks["broker"]["status"] == "down"
            assert process.signal(signal.SIGTERM) < 5


def test_settings_that_would_open_the_service_to_the_network_do_not_start(settings: Settings, tmp_path: Path) -> None:
    process = Process(settings, tmp_path / "log", QUANTRY_HOST="0.0.0.0")  # noqa: S104 - refused, which is the point
    try:
        with pytest.raises(RuntimeError, match="QUANTRY_API_KEY"):
            process.wait_until_alive()
    finally:
        process.kill()
