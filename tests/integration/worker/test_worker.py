"""A real Celery worker with its pool child, runner and sweeper, and every way in which one of them can die."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from jobs.embedded import EmbeddedServices
from jobs.job.commands import JobCommands
from jobs.job.nudge import SilentNudger
from jobs.repository.models import Worker
from jobs.settings import Settings
from tests.integration.worker.conftest import TENANT, Office, command_of, eventually, family_of, is_running
from worker.outcomes import Outcome


def steps_done(office: Office, job_id: str) -> int:
    return len(list(office.work(job_id).glob("*/stages/step-*")))


def pool_child(worker_pid: int, runner_pid: int) -> int:
    """The process between the worker and the runner."""
    parent = psutil.Process(runner_pid).ppid()
    assert psutil.Process(parent).ppid() == worker_pid
    return parent


def sweepers(worker_pid: int) -> list[psutil.Process]:
    return [process for process in family_of(worker_pid) if "worker.sweeper" in command_of(process)]


def test_a_nudge_runs_every_job_that_waits(office: Office) -> None:
    office.start_worker()
    jobs = [office.submit("succeed") for _ in range(3)]
    for job_id in jobs:
        assert office.wait(job_id, "succeeded", "failed").status == "succeeded"
    log = office.settings.data_dir / "worker-0.log"
    eventually(
        lambda: (
            [(entry["job_id"], entry["fence"], entry["attempt"]) for entry in ended(log)]
            == [(job_id, 1, 1) for job_id in jobs]
        )
    )


def ended(log: Path) -> list[dict[str, Any]]:
    """The structured log's lines about attempts that ended."""
    lines = [line for line in log.read_text().split("\n")[:-1] if line.startswith("{")]
    return [entry for line in lines if (entry := json.loads(line))["event"] == "attempt_ended"]


def test_a_lost_nudge_is_sent_again_by_the_sweep(office: Office) -> None:
    office.commands = JobCommands(office.database, office.settings, office.store, SilentNudger())
    job_id = office.submit("succeed")
    office.start_worker()
    assert office.wait(job_id, "succeeded", "failed").status == "succeeded"


def test_celerys_processes_do_not_load_torch_and_say_that_they_live(office: Office) -> None:
    worker = office.start_worker()
    job_id = office.submit("step")
    runner = office.runner_pid(job_id)
    for process in family_of(worker.pid):
        if process.pid != runner:
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), process.cmdline()
    assert len(sweepers(worker.pid)) == 1

    def rows() -> list[Worker]:
        with office.database.transaction() as session:
            return list(session.scalars(select(Worker)))

    eventually(lambda: len(rows()) == 1)
    (row,) = rows()
    assert (row.pid, row.device, row.owner.endswith(f":{worker.pid}")) == (worker.pid, "cpu", True)


def test_a_killed_runner_resumes(office: Office) -> None:
    office.start_worker()
    job_id = office.submit("step")
    runner = office.runner_pid(job_id)
    eventually(lambda: steps_done(office, job_id) >= 3)
    os.kill(runner, signal.SIGKILL)
    began = time.monotonic()
    job = office.wait(job_id, "succeeded", "failed")
    assert time.monotonic() - began < 60
    assert (job.status, job.attempt, job.summary) == ("succeeded", 2, {"runners": 2})


def test_a_killed_pool_child_takes_its_runner_along_and_the_sweep_resumes_the_job(office: Office) -> None:
    worker = office.start_worker()
    job_id = office.submit("step")
    runner = office.runner_pid(job_id)
    eventually(lambda: steps_done(office, job_id) >= 3)
    os.kill(pool_child(worker.pid, runner), signal.SIGKILL)
    eventually(lambda: not is_running(runner), seconds=5)
    job = office.wait(job_id, "succeeded", "failed")
    assert (job.status, job.attempt, job.summary) == ("succeeded", 2, {"runners": 2})


def test_a_killed_worker_leaves_no_process_and_another_worker_takes_over(office: Office) -> None:
    worker = office.start_worker()
    job_id = office.submit("step")
    runner = office.runner_pid(job_id)
    eventually(lambda: steps_done(office, job_id) >= 3)
    family = [process.pid for process in family_of(worker.pid)]
    assert len(family) >= 4
    assert runner in family
    worker.kill()
    worker.wait(10)
    eventually(lambda: not any(is_running(pid) for pid in family), seconds=20)
    assert (office.job(job_id).status, office.job(job_id).attempt) == ("queued", 0), "handed back at once"
    office.start_worker()
    job = office.wait(job_id, "succeeded", "failed")
    assert (job.status, job.summary) == ("succeeded", {"runners": 2})


def test_a_frozen_worker_wakes_up_too_late_and_changes_nothing(office: Office) -> None:
    worker = office.start_worker()
    job_id = office.submit("step")
    frozen_runner = office.runner_pid(job_id)
    child = psutil.Process(pool_child(worker.pid, frozen_runner))
    eventually(lambda: steps_done(office, job_id) >= 3)
    child.suspend()
    os.kill(frozen_runner, signal.SIGSTOP)
    office.wait(job_id, "queued", seconds=40)  # the worker's own sweeper goes on
    outcomes: list[Outcome | None] = []  # a claim passes over the row while the sweep, nudging, has it locked
    eventually(lambda: outcomes.append(office.supervisor().run_next()) or outcomes[-1] is not None)
    assert outcomes[-1] is Outcome.SUCCEEDED
    published = office.job(job_id), office.queries.list_artifacts(job_id, tenant=TENANT)
    child.resume()
    eventually(lambda: not is_running(frozen_runner))
    after = office.submit("succeed")
    assert office.wait(after, "succeeded", "failed").status == "succeeded", "the woken worker works on"
    assert (office.job(job_id), office.queries.list_artifacts(job_id, tenant=TENANT)) == published
    assert not (office.settings.artifacts_dir / job_id).exists(), "only blobs are published"


def test_a_killed_sweeper_comes_back(office: Office) -> None:
    worker = office.start_worker()
    eventually(lambda: len(sweepers(worker.pid)) == 1)
    first = sweepers(worker.pid)[0].pid
    os.kill(first, signal.SIGKILL)
    eventually(lambda: [process.pid for process in sweepers(worker.pid)] not in ([], [first]))


def test_a_poison_job_does_not_stop_the_others(office: Office) -> None:
    office.start_worker()
    poison, good = office.submit("die"), office.submit("succeed")
    failed = office.wait(poison, "failed", "succeeded")
    assert failed.error is not None
    assert (failed.status, failed.attempt, failed.error["code"]) == ("failed", 3, "crash_loop")
    assert office.wait(good, "succeeded", "failed").status == "succeeded"


def test_a_warm_shutdown_finishes_the_job_and_takes_no_other(office: Office) -> None:
    worker = office.start_worker(QUANTRY_DRAIN_SECONDS="60")
    running, waiting = office.submit("step"), office.submit("succeed")
    office.runner_pid(running)
    family = [process.pid for process in family_of(worker.pid)]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    job = office.job(running)
    assert (job.status, job.attempt, job.summary) == ("succeeded", 1, {"runners": 1})
    assert office.job(waiting).status == "queued"
    eventually(lambda: not any(is_running(pid) for pid in family), seconds=10)


@pytest.mark.parametrize(
    "signals", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGQUIT), (signal.SIGINT, signal.SIGINT)]
)
def test_a_cold_shutdown_hands_the_job_back_without_counting_the_attempt(
    office: Office, signals: tuple[signal.Signals, ...]
) -> None:
    worker = office.start_worker()
    job_id = office.submit("step")
    office.runner_pid(job_id)
    eventually(lambda: steps_done(office, job_id) >= 2)
    family = [process.pid for process in family_of(worker.pid)]
    for signum in signals:
        worker.send_signal(signum)
        time.sleep(0.3)
    worker.wait(15)
    eventually(lambda: not any(is_running(pid) for pid in family), seconds=5)
    job = office.job(job_id)
    assert (job.status, job.attempt) == ("queued", 0)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    job = office.job(job_id)
    assert (job.attempt, job.summary) == (1, {"runners": 2})


def test_a_worker_without_addresses_says_what_is_missing(office: Office) -> None:
    worker = office.start_worker(QUANTRY_DATABASE_URL="")
    assert worker.wait(30) != 0
    assert "QUANTRY_DATABASE_URL" in (office.settings.data_dir / "worker-0.log").read_text()


@pytest.fixture
def mortal_broker(office: Office, server_data_dir: Path) -> Iterator[EmbeddedServices]:
    """A broker of this test's own, which may be killed; the office is on it."""
    services = EmbeddedServices(
        Settings(data_dir=server_data_dir, database_url=office.settings.database_url, broker_url=None)
    )
    url = services.start().broker_url
    office.settings = Settings.model_validate({**office.settings.model_dump(), "broker_url": url})
    yield services
    services.stop()


def test_a_killed_broker_stops_nothing(office: Office, mortal_broker: EmbeddedServices) -> None:
    office.commands = JobCommands(office.database, office.settings, office.store, SilentNudger())
    worker = office.start_worker()
    running = office.submit("step")
    runner = office.runner_pid(running)
    [broker] = [server.pid for server in mortal_broker._servers]
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    job = office.wait(running, "succeeded", "failed")
    assert (job.status, job.attempt) == ("succeeded", 1), "the run does not depend on the broker"
    assert not is_running(runner)
    time.sleep(0.5)  # the task has looked once more, and ended
    assert office.wait(office.submit("succeed"), "succeeded", "failed").status == "succeeded", "nobody was nudged"

    handed_back = office.submit("step")
    runner = office.runner_pid(handed_back)
    worker.send_signal(signal.SIGQUIT)
    eventually(lambda: not is_running(runner))
    job = office.wait(handed_back, "queued")
    assert job.attempt == 0, "handed back, as a job that a nudge brought"
    worker.wait(30)

    mortal_broker.revive()
    office.start_worker()
    assert office.wait(handed_back, "succeeded", "failed").status == "succeeded"


def test_a_killed_worker_hands_back_a_job_that_it_found_itself(office: Office, mortal_broker: EmbeddedServices) -> None:
    office.commands = JobCommands(office.database, office.settings, office.store, SilentNudger())
    worker = office.start_worker()
    eventually(lambda: len(sweepers(worker.pid)) == 1)
    [broker] = [server.pid for server in mortal_broker._servers]
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    job_id = office.submit("step")
    eventually(lambda: steps_done(office, job_id) >= 2)
    family = [process.pid for process in family_of(worker.pid)]
    worker.kill()
    worker.wait(10)
    eventually(lambda: not any(is_running(pid) for pid in family), seconds=20)
    assert (office.job(job_id).status, office.job(job_id).attempt) == ("queued", 0)
