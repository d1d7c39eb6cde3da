"""Retries, a lack of memory and deadlines, with a runner that is a real process."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from jobs.artifacts import OnBytes
from jobs.job.lease import JobLeases
from quant_engine.interface.stages import RetryStage
from tests.integration.worker.conftest import TENANT, Office, eventually, is_running
from tests.integration.worker.test_store_output import Trying
from worker.attempts.supervisor import Supervisor
from worker.attempts.workspace import open_workspace
from worker.outcomes import Outcome
from worker.subprocesses.oom_kills import oom_kills

STAGES = ("load", "calibrate", "train", "select")


@pytest.fixture
def in_background() -> Iterator[Callable[[Supervisor], "Future[Outcome | None]"]]:
    """Run a supervisor in a thread of its own, which the runner's life is tied to."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda supervisor: pool.submit(supervisor.run_next)


def retry(office: Office, job_id: str, from_stage: RetryStage | None = None) -> None:
    office.commands.retry_job(job_id, tenant=TENANT, from_stage=from_stage)


def failed_after_stages(office: Office) -> str:
    """A job whose stages are done, and which failed all the same; its cause is mended now."""
    job_id = office.submit("stages")
    assert office.supervisor().run_next() is Outcome.FAILED
    (office.work(job_id) / "mended").touch()
    return job_id


def reused(office: Office, job_id: str) -> list[str]:
    return [stage.name for stage in office.job(job_id).stages if stage.status == "reused"]


def error_code(office: Office, job_id: str) -> str:
    error = office.job(job_id).error
    assert error is not None
    return str(error["code"])


def test_a_retry_resumes_from_all_that_was_done(office: Office) -> None:
    job_id = failed_after_stages(office)
    retry(office, job_id)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    assert reused(office, job_id) == list(STAGES)
    job = office.job(job_id)
    assert (job.attempt, job.retries, job.error) == (2, 1, None)
    assert not office.work(job_id).exists()


@pytest.mark.parametrize(("stage", "kept"), [("train", 2), ("quantize", 4), ("resolve", 0)])
def test_a_retry_from_a_stage_computes_it_and_the_later_ones_anew(office: Office, stage: RetryStage, kept: int) -> None:
    job_id = failed_after_stages(office)
    [space] = office.work(job_id).glob("[0-9]*")
    assert (space / "stages" / "quantize.partial").is_dir()
    retry(office, job_id, stage)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    assert reused(office, job_id) == list(STAGES[:kept])


def test_the_stages_are_dropped_once(office: Office) -> None:
    job_id = failed_after_stages(office)
    (office.work(job_id) / "mended").unlink()
    retry(office, job_id, "train")
    assert office.supervisor().run_next() is Outcome.FAILED
    assert reused(office, job_id) == ["load", "calibrate"]
    (office.work(job_id) / "mended").touch()
    retry(office, job_id)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    assert reused(office, job_id) == list(STAGES), "what was computed anew is kept"


def test_an_attempt_that_dies_before_the_drop_is_noted_does_no_harm(office: Office) -> None:
    job_id = failed_after_stages(office)
    retry(office, job_id, "train")
    claim = office.leases.claim("dead:1")
    assert claim is not None
    open_workspace(office.settings.work_dir, job_id, claim.fence).drop_stages(["train"])
    assert office.leases.release(claim, "crash")
    time.sleep(office.settings.retry_delay_seconds * 3)
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    assert reused(office, job_id) == ["load", "calibrate"]


def test_a_cancelled_job_keeps_its_work_for_a_retry(office: Office, in_background: Any) -> None:
    job_id = office.submit("step")
    supervisor = office.supervisor()
    running = in_background(supervisor)
    eventually(lambda: len(list(office.work(job_id).glob("*/stages/step-*"))) >= 3)
    office.commands.cancel_job(job_id, tenant=TENANT)
    assert running.result(30) is Outcome.CANCELLED
    retry(office, job_id)
    assert supervisor.run_next() is Outcome.SUCCEEDED
    assert office.job(job_id).summary == {"runners": 2}, "the second runner did again what the first had done"


def test_a_lack_of_memory_is_answered_with_a_run_on_less(office: Office) -> None:
    job_id = office.submit("starve")
    supervisor = office.supervisor()
    assert supervisor.run_next() is Outcome.STARVED
    job = office.job(job_id)
    assert (job.status, job.low_memory, job.error) == ("queued", True, None)
    time.sleep(office.settings.retry_delay_seconds * 2)
    assert supervisor.run_next() is Outcome.SUCCEEDED
    assert office.job(job_id).attempt == 2


def test_a_lack_of_memory_with_less_as_well_fails_with_a_remedy(office: Office) -> None:
    job_id, good = office.submit("famish"), office.submit("succeed")
    supervisor = office.supervisor()
    outcomes: list[Outcome | None] = []

    def is_over() -> bool:
        outcomes.append(supervisor.run_next())
        return office.job(job_id).is_terminal

    eventually(is_over)
    assert outcomes[0] is Outcome.STARVED
    assert outcomes[-1] is Outcome.FAILED
    supervisor.run_next()  # the other job, unless it came in between
    job = office.job(job_id)
    assert job.error is not None
    assert (job.attempt, job.error["code"], job.error["category"]) == (2, "insufficient_memory", "capacity")
    assert "before" in job.error["detail"]
    assert job.error["hint"]
    assert office.job(good).status == "succeeded"


def killed_by_the_kernel(office: Office) -> Supervisor:
    """A supervisor on a machine whose kernel's count the scripted runner raises."""
    vmstat = office.settings.data_dir / "proc" / "vmstat"
    vmstat.parent.mkdir()
    vmstat.write_text("pgfault 1\noom_kill 7\n")
    supervisor = office.supervisor()
    dependencies = replace(supervisor.dependencies, oom_kills=partial(oom_kills, office.settings.data_dir))
    return replace(supervisor, dependencies=dependencies)


@pytest.mark.parametrize("behavior", ["be_killed", "bereaved"])
def test_a_kill_by_the_kernel_for_memory_is_answered_in_the_same_way(office: Office, behavior: str) -> None:
    supervisor = killed_by_the_kernel(office)
    job_id = office.submit(behavior)
    assert supervisor.run_next() is Outcome.STARVED
    time.sleep(office.settings.retry_delay_seconds * 2)
    assert supervisor.run_next() is Outcome.SUCCEEDED
    assert office.job(job_id).attempt == 2


def test_a_second_kill_for_memory_ends_the_job(office: Office) -> None:
    supervisor = killed_by_the_kernel(office)
    job_id = office.submit("be_killed")
    assert supervisor.run_next() is Outcome.STARVED
    (office.work(job_id) / "always").touch()
    time.sleep(office.settings.retry_delay_seconds * 2)
    assert supervisor.run_next() is Outcome.FAILED
    assert error_code(office, job_id) == "insufficient_memory"


def test_another_kill_is_a_crash(office: Office, in_background: Any) -> None:
    supervisor = killed_by_the_kernel(office)
    job_id = office.submit("hang")
    running = in_background(supervisor)
    os.kill(office.runner_pid(job_id), signal.SIGKILL)
    assert running.result(30) is Outcome.CRASHED
    assert not office.job(job_id).low_memory


def unhurried(office: Office) -> None:
    """Too long a time between two beats for a deadline to wait for one."""
    office.settings = office.settings.model_copy(update={"lease_seconds": 90.0, "heartbeat_seconds": 30.0})
    office.leases = JobLeases(office.database, office.settings)


def test_a_deadline_counts_earlier_attempts_and_waits_for_no_heartbeat_nor_for_a_deaf_runner(
    office: Office, in_background: Any
) -> None:
    unhurried(office)
    job_id = office.submit("hang", limits={"max_run_seconds": 1000})
    with office.database.transaction() as session:
        session.execute(text("UPDATE jobs SET attempt = 1, ran_seconds = 996"))
    began = time.monotonic()
    running = in_background(office.supervisor())
    runner = office.runner_pid(job_id)
    assert running.result(30) is Outcome.FAILED
    assert 4 <= time.monotonic() - began < 4 + 15
    assert not is_running(runner)
    assert (error_code(office, job_id), office.job(job_id).attempt) == ("deadline_exceeded", 2)


def test_a_deadline_counts_while_the_result_is_published(office: Office) -> None:
    unhurried(office)

    def take_long(on_bytes: OnBytes) -> None:
        while True:
            time.sleep(0.01)
            on_bytes(0)

    office.store = Trying(office.settings.artifacts_dir, take_long)
    job_id = office.submit("succeed", limits={"max_run_seconds": 3})
    assert office.supervisor().run_next() is Outcome.FAILED
    assert error_code(office, job_id) == "deadline_exceeded"
    assert office.job(job_id).stages[-1].name == "publish"


def test_a_job_whose_time_earlier_attempts_used_up_starts_no_runner(office: Office) -> None:
    job_id = office.submit("succeed", limits={"max_run_seconds": 5})
    with office.database.transaction() as session:
        session.execute(text("UPDATE jobs SET ran_seconds = 5.5"))
    assert office.supervisor().run_next() is Outcome.FAILED
    assert error_code(office, job_id) == "deadline_exceeded"
    assert not (office.work(job_id) / "runner.pid").exists()
