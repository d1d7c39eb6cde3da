"""One attempt from claim to ending, on a real database, with a runner that is a real process."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.kit.errors import Unavailable
from jobs.kit.leases import HeartbeatResult
from jobs.settings import Settings
from tests.integration.worker.conftest import Office, eventually, is_running
from tests.small_disk import mounted_disk
from worker.attempts.supervisor import Supervisor
from worker.outcomes import Outcome


@pytest.fixture
def in_background() -> Iterator[Callable[[Supervisor], "Future[Outcome | None]"]]:
    """Run a supervisor in a thread of its own, which the runner's life is tied to."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda supervisor: pool.submit(supervisor.run_next)


def nothing_left(office: Office, job_id: str) -> bool:
    return not office.work(job_id).exists()


def only_resumable_work_left(office: Office, job_id: str) -> bool:
    """What a retry resumes from, and the log."""
    [space] = office.work(job_id).glob("[0-9]*")
    return (space / "stages").is_dir() and not (space / "output").exists() and not (space / "scratch").exists()


def test_nothing_to_do(office: Office) -> None:
    assert office.supervisor().run_next() is None


def test_success_publishes_everything_and_cleans_up(office: Office) -> None:
    job_id = office.submit("succeed")
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    job = office.job(job_id)
    assert (job.status, job.attempt, job.error) == ("succeeded", 1, None)
    assert job.summary == {"full_mean_error": 1.5}
    assert [(stage.name, stage.status) for stage in job.stages] == [
        ("resolve", "succeeded"),
        ("load", "reused"),
        ("calibrate", "succeeded"),
        ("train", "succeeded"),
        ("publish", "succeeded"),
    ]
    artifacts = office.queries.list_artifacts(job_id, tenant="default").data
    assert [artifact.path for artifact in artifacts] == [
        "checkpoint/config.json",
        "layers.json",
        "report.json",
        "summary.json",
    ]
    assert not office.work(job_id).exists()


def test_events_tell_the_whole_story_in_order(office: Office) -> None:
    job_id = office.submit("succeed")
    office.supervisor().run_next()
    events = office.events(job_id)
    kinds = [event.type for event in events]
    assert set(kinds) == {"job.status", "stage.status", "progress", "layer.completed", "metric", "log", "done"}
    assert kinds[-1] == "done"
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    statuses = [event.data["status"] for event in events if event.type == "job.status"]
    assert statuses == ["queued", "running", "succeeded"]
    fractions = [event.data["fraction"] for event in events if event.type == "progress"]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    ("behavior", "code", "category"),
    [("refuse", "not_enough_text", "user"), ("overflow", "disk_full", "capacity")],
)
def test_an_error_message_fails_the_job_with_its_remedy(
    office: Office, behavior: str, code: str, category: str
) -> None:
    job_id = office.submit(behavior)
    assert office.supervisor().run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == (code, category)
    assert job.error["hint"]
    left = nothing_left if code == "disk_full" else only_resumable_work_left
    assert left(office, job_id)


def test_the_stage_that_was_running_failed_with_the_run(office: Office) -> None:
    job_id = office.submit("refuse")
    office.supervisor().run_next()
    assert [(stage.name, stage.status) for stage in office.job(job_id).stages] == [
        ("resolve", "succeeded"),
        ("load", "failed"),
    ]


def test_a_result_without_files_is_our_fault(office: Office) -> None:
    job_id = office.submit("malformed")
    assert office.supervisor().run_next() is Outcome.FAILED
    error = office.job(job_id).error
    assert error is not None
    assert (error["code"], error["category"]) == ("internal_error", "platform")
    assert only_resumable_work_left(office, job_id)


@pytest.mark.parametrize("behavior", ["die", "vanish"])
def test_a_poison_job_ends_after_exactly_its_attempts(office: Office, behavior: str) -> None:
    job_id, good = office.submit(behavior), office.submit("succeed")
    supervisor = office.supervisor()
    outcomes = []
    deadline = time.monotonic() + 60
    while office.job(job_id).status != "failed":
        assert time.monotonic() < deadline
        outcomes.append(supervisor.run_next())
    job = office.job(job_id)
    assert outcomes.count(Outcome.CRASHED) == job.attempt == office.settings.max_attempts
    assert job.error is not None
    assert job.error["code"] == "crash_loop"
    while office.job(good).status == "queued":  # on a slow machine every retry was due before the next claim
        supervisor.run_next()
    assert office.job(good).status == "succeeded"
    assert only_resumable_work_left(office, job_id)


def test_a_killed_runner_is_resumed_by_the_next_attempt(office: Office, in_background: Any) -> None:
    job_id = office.submit("step")
    supervisor = office.supervisor()
    first = in_background(supervisor)
    runner = office.runner_pid(job_id)
    eventually(lambda: len(list(office.work(job_id).glob("*/stages/step-*"))) >= 3)
    os.kill(runner, signal.SIGKILL)
    assert first.result(30) is Outcome.CRASHED
    time.sleep(0.2)
    assert supervisor.run_next() is Outcome.SUCCEEDED
    job = office.job(job_id)
    assert job.attempt == 2
    assert job.summary == {"runners": 2}, "the second runner did again what the first had done"


def test_cancel_stops_a_deaf_runner(office: Office, in_background: Any) -> None:
    job_id = office.submit("hang")
    running = in_background(office.supervisor())
    runner = office.runner_pid(job_id)
    began = time.monotonic()
    assert office.commands.cancel_job(job_id, tenant="default").status == "cancelling"
    assert running.result(30) is Outcome.CANCELLED
    assert time.monotonic() - began < 15
    assert not is_running(runner)
    job = office.job(job_id)
    assert (job.status, job.summary, job.error) == ("cancelled", None, None)
    assert only_resumable_work_left(office, job_id)


def test_the_deadline_ends_a_run(office: Office) -> None:
    job_id = office.submit("hang", limits={"max_run_seconds": 1})
    assert office.supervisor().run_next() is Outcome.FAILED
    error = office.job(job_id).error
    assert error is not None
    assert error["code"] == "deadline_exceeded"
    assert only_resumable_work_left(office, job_id)


def test_a_supervisor_that_lost_its_fence_kills_its_runner_and_writes_nothing(
    office: Office, in_background: Any
) -> None:
    job_id = office.submit("hang")
    running = in_background(office.supervisor())
    runner = office.runner_pid(job_id)
    with office.database.transaction() as session:
        session.execute(text("UPDATE jobs SET fence = fence + 1"))
    assert running.result(30) is Outcome.LOST
    assert not is_running(runner)
    assert office.job(job_id).status == "running"


class StaleAtTheEnd(JobLeases):
    """The real JobLeases; another worker takes the job over just before this one publishes."""

    def publish(self, claim: Claim, manifest: Manifest) -> bool:
        with self._database.transaction() as session:
            session.execute(text("UPDATE jobs SET fence = fence + 1"))
        return super().publish(claim, manifest)


def test_losing_the_fence_at_publication_publishes_nothing(office: Office) -> None:
    job_id = office.submit("succeed")
    office.leases = StaleAtTheEnd(office.database, office.settings)
    assert office.supervisor().run_next() is Outcome.LOST
    assert office.job(job_id).status == "running"
    assert office.queries.list_artifacts(job_id, tenant="default").data == ()
    assert not (office.work(job_id) / "1" / "output").exists()


class CancelledAtTheEnd(JobLeases):
    """The real JobLeases; a cancel becomes durable just before publication."""

    office: Office

    def publish(self, claim: Claim, manifest: Manifest) -> bool:
        self.office.commands.cancel_job(claim.job_id, tenant="default")
        return super().publish(claim, manifest)


def test_a_cancel_before_publication_wins(office: Office) -> None:
    job_id = office.submit("succeed")
    leases = CancelledAtTheEnd(office.database, office.settings)
    leases.office = office
    office.leases = leases
    assert office.supervisor().run_next() is Outcome.CANCELLED
    assert office.job(job_id).status == "cancelled"
    assert only_resumable_work_left(office, job_id)


class AnswerLost(JobLeases):
    """The real JobLeases whose first publication lands, but whose answer does not arrive."""

    lost = False

    def publish(self, claim: Claim, manifest: Manifest) -> bool:
        landed = super().publish(claim, manifest)
        if not self.lost:
            self.lost = True
            raise Unavailable
        return landed


def test_a_published_output_is_kept_even_if_the_answer_is_lost(office: Office) -> None:
    job_id = office.submit("succeed")
    office.leases = AnswerLost(office.database, office.settings)
    office.supervisor().run_next()
    assert office.job(job_id).status == "succeeded"
    (artifact, *_) = office.queries.list_artifacts(job_id, tenant="default").data
    assert b"".join(office.queries.open_artifact(artifact.id, tenant="default").read()) == b"{}"


class Flaky(JobLeases):
    """The real JobLeases on a database that is away for a while, and then back."""

    away_until = 0.0

    def heartbeat(self, claim: Claim) -> HeartbeatResult:
        self._check()
        return super().heartbeat(claim)

    def record_progress(self, claim: Claim, progress: Any) -> bool:
        self._check()
        return super().record_progress(claim, progress)

    def _check(self) -> None:
        if time.monotonic() < self.away_until:
            raise Unavailable


def test_a_short_outage_of_the_database_costs_nothing(office: Office, in_background: Any) -> None:
    job_id = office.submit("step")
    leases = Flaky(office.database, office.settings)
    office.leases = leases
    running = in_background(office.supervisor())
    office.runner_pid(job_id)
    leases.away_until = time.monotonic() + 1.5  # the lease is 3 s, given up after 2.5 s
    assert running.result(30) is Outcome.SUCCEEDED
    assert office.job(job_id).attempt == 1


def test_a_long_outage_kills_the_runner_before_the_lease_ends(office: Office, in_background: Any) -> None:
    job_id = office.submit("hang")
    leases = Flaky(office.database, office.settings)
    office.leases = leases
    running = in_background(office.supervisor())
    runner = office.runner_pid(job_id)
    leases.away_until = time.monotonic() + 60
    began = time.monotonic()
    eventually(lambda: not is_running(runner), seconds=office.settings.lease_seconds)
    assert running.result(10) is Outcome.LOST
    assert time.monotonic() - began < office.settings.lease_seconds
    assert office.job(job_id).status == "running", "only the sweep may decide about a silent worker's job"


def test_a_drained_job_waits_for_another_worker_with_its_attempt_given_back(office: Office, in_background: Any) -> None:
    job_id = office.submit("step")
    stopping = threading.Event()
    supervisor = office.supervisor()
    drained = Supervisor(
        dependencies=type(supervisor.dependencies)(**{**vars(supervisor.dependencies), "must_yield": stopping.is_set}),
        owner="test:2",
        nudger=supervisor.nudger,
    )
    running = in_background(drained)
    runner = office.runner_pid(job_id)
    eventually(lambda: len(list(office.work(job_id).glob("*/stages/step-*"))) >= 2)
    stopping.set()
    assert running.result(10) is Outcome.DRAINED
    assert not is_running(runner)
    assert (office.job(job_id).status, office.job(job_id).attempt) == ("queued", 0)
    assert supervisor.run_next() is Outcome.SUCCEEDED
    assert (office.job(job_id).attempt, office.job(job_id).summary) == (1, {"runners": 2})


def test_a_runner_sees_no_secret(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUANTRY_DATABASE_URL", "QUANTRY_BROKER_URL", "QUANTRY_API_KEY", "HF_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    job_id = office.submit("show")
    assert office.supervisor().run_next() is Outcome.SUCCEEDED
    seen = office.queries.get_report(job_id, tenant="default")
    assert "hunter2" not in str(seen)
    assert not [name for name in seen["environment"] if name.startswith(("QUANTRY_", "PG", "HF_TOKEN"))]
    assert seen["environment"]["HF_HUB_OFFLINE"] == "1"
    assert Path(seen["directory"]).is_relative_to(office.work(job_id))


def test_a_model_that_went_away_after_the_submit(office: Office) -> None:
    job_id = office.submit("succeed")
    model = office.settings.models_dir / "succeed"
    model.rename(model.with_name("elsewhere"))
    assert office.supervisor().run_next() is Outcome.FAILED
    error = office.job(job_id).error
    assert error is not None
    assert error["code"] == "model_not_found"
    assert [(stage.name, stage.status) for stage in office.job(job_id).stages] == [("resolve", "failed")]


def test_a_model_that_leads_outside_the_models_directory(office: Office, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    job_id = office.submit("succeed")
    model = office.settings.models_dir / "succeed"
    model.rename(model.with_name("elsewhere"))
    model.symlink_to(outside)
    assert office.supervisor().run_next() is Outcome.FAILED
    error = office.job(job_id).error
    assert error is not None
    assert error["code"] == "model_not_found"


@pytest.fixture
def tiny_disk(settings: Settings) -> Iterator[None]:
    """The work directory on a disk of its own, with hardly any room."""
    with mounted_disk(settings.work_dir, "64k"):
        yield


@pytest.mark.usefixtures("tiny_disk")
def test_a_full_disk_is_the_jobs_problem_not_a_crash(office: Office) -> None:
    text = "word " * 60_000
    job_id = office.submit("succeed", calibration={"dataset": {"texts": [text]}})
    assert office.supervisor().run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == ("disk_full", "capacity")
    assert job.attempt == 1
    assert not office.work(job_id).exists()
