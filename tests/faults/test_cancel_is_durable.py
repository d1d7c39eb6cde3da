"""P6: a cancel that was acknowledged holds, whatever happens to API and workers, and its runner is gone in 15 s.

The acknowledgement is the 202 of a real API over a socket. A cancel that comes too late is refused, and takes nothing
away from the finished model.
"""

import random
import signal
import time
from typing import Final

import httpx
import pytest

from tests.faults.offices import Apis
from tests.faults.scale import scaled
from tests.integration.worker.conftest import TENANT, Office, eventually, family_of, is_running

SECONDS: Final = 15.0
RACES: Final = scaled(8, 60)


def cancel(client: httpx.Client, job_id: str) -> str:
    """The status that the acknowledgement tells."""
    response = client.post(f"/v1/jobs/{job_id}/cancel")
    assert response.status_code == 202, response.text
    status: str = response.json()["status"]
    return status


def statuses(office: Office, job_id: str) -> list[str]:
    """Every status that the job ever had."""
    return [event.data["status"] for event in office.events(job_id) if event.type == "job.status"]


def kill_all(worker_pid: int) -> None:
    """The worker and all its processes, at once."""
    for process in family_of(worker_pid):
        process.kill()


def test_a_cancel_outlives_the_api_that_acknowledged_it_and_the_absence_of_workers(office: Office, apis: Apis) -> None:
    waiting, later = office.submit("succeed"), office.submit("succeed")
    apis.start()
    with httpx.Client(base_url=apis.url, timeout=60) as client:
        assert cancel(client, waiting) == "cancelled"
    apis.processes[0].send_signal(signal.SIGKILL)
    office.start_worker()
    assert office.wait(later, "succeeded", "failed").status == "succeeded"
    assert statuses(office, waiting) == ["queued", "cancelled"]


def test_a_running_job_stops_in_time_however_deaf_its_runner(office: Office, client: httpx.Client) -> None:
    office.start_worker()
    job_id = office.submit("hang")
    runner = office.runner_pid(job_id)
    assert cancel(client, job_id) == "cancelling"
    acknowledged = time.monotonic()
    assert office.wait(job_id, "cancelled", "succeeded", seconds=SECONDS).status == "cancelled"
    eventually(lambda: not is_running(runner), seconds=SECONDS - (time.monotonic() - acknowledged))
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 409


def test_a_cancel_while_the_worker_is_dead_holds_when_the_next_one_starts(office: Office, client: httpx.Client) -> None:
    worker = office.start_worker()
    job_id = office.submit("step")
    runner = office.runner_pid(job_id)
    kill_all(worker.pid)
    worker.wait(10)
    assert cancel(client, job_id) == "cancelling"
    eventually(lambda: not is_running(runner), seconds=SECONDS)
    office.start_worker()
    assert office.wait(job_id, "cancelled", "succeeded").status == "cancelled"
    assert statuses(office, job_id) == ["queued", "running", "cancelling", "cancelled"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGQUIT])
def test_a_cancel_while_the_worker_restarts(office: Office, client: httpx.Client, stop: signal.Signals) -> None:
    worker = office.start_worker()
    job_id = office.submit("hang")
    runner = office.runner_pid(job_id)
    worker.send_signal(stop)
    status = cancel(client, job_id)
    acknowledged = time.monotonic()
    assert status in {"cancelling", "cancelled"}
    office.start_worker()
    eventually(lambda: not is_running(runner), seconds=SECONDS - (time.monotonic() - acknowledged))
    assert office.wait(job_id, "cancelled", "succeeded").status == "cancelled"
    assert "succeeded" not in statuses(office, job_id)


def test_a_cancel_that_races_the_end_has_one_winner(office: Office, client: httpx.Client) -> None:
    office.start_worker()
    chance = random.Random(0)  # noqa: S311 — a seed, not a secret
    for _ in range(RACES):
        job_id = office.submit("succeed")
        runner = office.runner_pid(job_id)
        time.sleep(chance.uniform(0, 0.3))
        response = client.post(f"/v1/jobs/{job_id}/cancel")
        job = office.wait(job_id, "succeeded", "cancelled", "failed")
        files = office.queries.list_artifacts(job_id, tenant=TENANT).data
        if response.status_code == 202:
            assert (job.status, job.summary, files) == ("cancelled", None, ())
        else:
            assert (response.status_code, job.status, job.summary) == (409, "succeeded", {"full_mean_error": 1.5})
            assert client.get(f"/v1/artifacts/{files[0].id}/content").status_code == 200
        eventually(lambda pid=runner: not is_running(pid), seconds=SECONDS)  # type: ignore[misc]  # bound now
