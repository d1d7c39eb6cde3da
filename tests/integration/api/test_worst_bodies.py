"""The worst bodies, one after the other and many at once, against the API as a process: its time, memory and health."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from jobs.settings import Settings
from tests.api_process import api_process
from tests.worst_bodies import LARGEST, WorstBody, worst_bodies

_BODIES = 200
_SECONDS = 0.5
_BYTES = 100e6
_BYTES_AT_ONCE = 400e6
_TICKS_PER_SECOND = 100.0
_HEADERS = {"Content-Type": "application/json"}


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _memory(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


@contextmanager
def _polled(url: str) -> Iterator[list[float]]:
    """Ask /healthz all the time; the yielded list gets the seconds that each answer took."""
    took: list[float] = []
    ended = threading.Event()

    def poll() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ended.wait(0.02):
                began = time.monotonic()
                assert client.get("/healthz").status_code == 200
                took.append(time.monotonic() - began)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


class Cost(NamedTuple):
    """What one body cost the server: processor time, and memory at its peak above what there was before."""

    seconds: float
    bytes: float
    name: str


def _send(client: httpx.Client, sent: WorstBody, *, busy: bool = False) -> None:
    response = client.request(sent.method, sent.path, content=sent.body, headers=_HEADERS)
    if busy and response.status_code == 503:
        assert response.headers["retry-after"], sent.name
        return
    assert response.status_code in (202, 400, 404, 413, 422), sent.name
    if response.status_code != 202:
        assert response.headers["content-type"] == "application/problem+json", sent.name
        assert len(response.json().get("errors", [])) <= 50, sent.name
        assert len(response.content) < 32_768, sent.name


@pytest.mark.slow
def test_no_body_costs_more_than_its_budget_and_many_at_once_stop_nobody(settings: Settings, tmp_path: Path) -> None:
    bodies = list(worst_bodies(_BODIES))
    assert sum(len(sent.body) > LARGEST / 2 for sent in bodies) > _BODIES / 5
    with api_process(settings, tmp_path / "log") as process, httpx.Client(base_url=process.url, timeout=60) as client:
        client.post("/v1/jobs", json={})
        with _polled(process.url) as health:
            costs = [_cost(process.pid, client, sent) for sent in bodies]
        assert [cost for cost in costs if cost.seconds > _SECONDS] == []
        assert [cost for cost in costs if cost.bytes > _BYTES] == []
        assert max(health) < 1.0
        heaviest = sorted(bodies, key=lambda sent: -len(sent.body))[:20]
        with _polled(process.url) as health:
            memory = _memory(process.pid, "VmRSS")
            cancels = _send_at_once(client, heaviest)
        assert max(health) < 1.0
        assert max(cancels) < 2.0
        assert _memory(process.pid, "VmHWM") - memory < _BYTES_AT_ONCE


def _cost(pid: int, client: httpx.Client, sent: WorstBody) -> Cost:
    # From here on the kernel counts the peak of the memory anew.
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    memory, seconds = _memory(pid, "VmRSS"), _processor_seconds(pid)
    _send(client, sent)
    return Cost(_processor_seconds(pid) - seconds, _memory(pid, "VmHWM") - memory, sent.name)


def _send_at_once(client: httpx.Client, bodies: list[WorstBody]) -> list[float]:
    """Send many bodies, and cancels beside them; return the seconds that each cancel took."""
    took = []
    with ThreadPoolExecutor(12) as pool:
        sending = [pool.submit(_send, client, sent, busy=True) for sent in bodies]
        while not all(each.done() for each in sending):
            began = time.monotonic()
            assert client.post("/v1/jobs/job_x/cancel", json={}).status_code == 404
            took.append(time.monotonic() - began)
            time.sleep(0.05)
    for each in sending:
        each.result()
    return took
