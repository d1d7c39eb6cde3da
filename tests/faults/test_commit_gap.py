"""P2: an API that dies between the commit of a job and the nudge for it has accepted the job, and the job starts.

The process is killed by itself, with SIGKILL, at exactly that edge. Nobody sends the request again.
"""

import signal
from typing import Final

import httpx
import pytest

from tests.faults.failpoints import Edge, Moment
from tests.faults.offices import Apis
from tests.faults.scale import scaled
from tests.integration.worker.conftest import TENANT, Office, eventually

KILLS: Final = scaled(5, 50)
TOGETHER: Final = 5
GAP: Final[tuple[tuple[Edge, Moment], ...]] = (("commit", "after"), ("publish", "before"))


@pytest.mark.timeout(scaled(600, 3600))
def test_every_job_of_an_api_killed_between_commit_and_nudge_starts(office: Office, apis: Apis) -> None:
    with httpx.Client(timeout=60) as client:
        for number in range(KILLS):
            if apis.running == 0:
                apis.start(min(TOGETHER, KILLS - number))
            edge, moment = GAP[number % len(GAP)]
            body = {
                "model": {"source": "local", "id": "succeed"},
                "policy": {"preset": "trainable-smoothrot-w4a4"},
                "metadata": {"number": str(number)},
            }
            apis.dies_while_asked(edge, moment, client, json=body)
    assert [process.poll() for process in apis.processes] == [-signal.SIGKILL] * KILLS
    jobs = office.queries.list_jobs(tenant=TENANT, limit=100).data
    assert sorted(int(job.metadata["number"]) for job in jobs) == list(range(KILLS)), "each was taken, and once"
    assert {job.status for job in jobs} == {"queued"}
    office.start_worker()
    eventually(lambda: {office.job(job.id).status for job in jobs} == {"succeeded"}, seconds=60 + 3 * KILLS)
