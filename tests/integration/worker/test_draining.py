"""A worker that is asked to stop while a job runs that would take hours."""

import signal
import time

from tests.integration.worker.conftest import Office, eventually, family_of, is_running
from worker.outcomes import Outcome


def test_a_job_that_does_not_end_in_time_goes_back_to_the_queue_and_costs_no_attempt(office: Office) -> None:
    worker = office.start_worker(QUANTRY_DRAIN_SECONDS="1")
    job_id = office.submit("hang")
    waiting = office.submit("succeed")
    office.runner_pid(job_id)
    family = [process.pid for process in family_of(worker.pid)]
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert time.monotonic() - began >= 1
    eventually(lambda: not any(is_running(pid) for pid in family), seconds=5)
    job = office.job(job_id)
    assert (job.status, job.attempt, job.error) == ("queued", 0, None)
    reasons = [event.data.get("reason") for event in office.events(job_id) if event.type == "job.status"]
    assert reasons[-1] == "drain"
    assert office.job(waiting).status == "queued", "a worker that is leaving takes no other job"
    office.commands.cancel_job(job_id, tenant="default")
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
