"""The API being stopped behind a load balancer: unready first, then no new connection, and nobody is cut off."""

import asyncio
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from api.draining import Draining
from jobs.settings import Settings
from tests.api_process import api_process
from tests.integration.api.conftest import BODY


def test_it_is_unready_before_it_is_gone_and_streams_are_told_to_come_back(settings: Settings, tmp_path: Path) -> None:
    with api_process(settings, tmp_path / "log", QUANTRY_UNREADY_SECONDS="3") as process:
        job = httpx.post(f"{process.url}/v1/jobs", json=BODY).json()
        events = f"{process.url}{job['links']['events']}"
        with httpx.stream("GET", events, headers={"Accept": "text/event-stream"}, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines) == "id: 1"
            stopping = threading.Thread(target=process.signal, args=(signal.SIGTERM,))
            stopping.start()
            refusal = _unready(process.url)
            assert (refusal.json()["code"], refusal.headers["Retry-After"]) == ("draining", "5")
            assert httpx.get(f"{process.url}/healthz").status_code == 200, "alive, so nobody kills it"
            assert httpx.post(f"{process.url}/v1/jobs", json=BODY).status_code == 202, "who comes still gets an answer"
            rest = list(lines)
        stopping.join()
    assert "retry: 2000" in rest, "a clean end, with a time to come back after"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{process.url}/healthz")


def _unready(url: str) -> httpx.Response:
    """The first answer that says that this server is being stopped."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        response = httpx.get(f"{url}/readyz")
        if response.status_code == 503 and response.json()["code"] == "draining":
            return response
        time.sleep(0.02)
    raise AssertionError("it stayed ready")


class _Server:
    """What stands behind the handler of SIGTERM."""

    def __init__(self) -> None:
        self.should_exit = False

    def handle_exit(self, number: int, frame: object) -> None:
        assert (number, frame) == (signal.SIGTERM, None)
        self.should_exit = True


async def _signaled(draining: Draining, server: _Server, *, times: int) -> None:
    with draining.on_sigterm():
        assert (draining.begun, draining.should_exit) == (False, False)
        for _ in range(times):
            draining.handle(signal.SIGTERM, None)
    assert draining.begun
    assert draining.should_exit is server.should_exit


@pytest.mark.parametrize(("unready", "times", "stops"), [(0.0, 1, True), (60.0, 1, False), (60.0, 2, True)])
def test_the_server_is_told_at_once_without_time_to_be_unready_or_by_a_second_signal(
    unready: float, times: int, stops: bool
) -> None:
    server = _Server()
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        asyncio.run(_signaled(Draining(unready), server, times=times))
        assert server.should_exit is stops
        assert signal.getsignal(signal.SIGTERM) == server.handle_exit
    finally:
        signal.signal(signal.SIGTERM, before)
