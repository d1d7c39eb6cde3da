"""P1, P5, P8 and P9: whatever is killed or restarted, every accepted job ends once, and as it should.

``QUANTRY_TEST_SCALE=full``: 500 jobs under 60 kills, and 20 kills of the broker; otherwise 40 under 5, and 2.
"""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.faults.checker import STUCK_SECONDS
from tests.faults.fleet import Kept
from tests.faults.promises.act import MAX_ATTEMPTS, READY_SECONDS, Act
from tests.faults.scale import scaled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

JOBS = scaled(40, 500)
KILLS = scaled(5, 60)
BROKER_KILLS = scaled(2, 20)


@contextmanager
def submitted_meanwhile(act: Act, kind: str, count: int) -> Iterator[Callable[[], bool]]:
    """``count`` jobs from another thread; what it gives tells whether all of them have been accepted."""
    jobs: list[str | None] = []
    thread = threading.Thread(target=lambda: jobs.extend(act.customer.submit(kind) for _ in range(count)))
    thread.start()
    yield lambda: len(jobs) == count
    thread.join()
    assert None not in jobs


def _await_ended(act: Act, count: int) -> None:
    act.until(lambda: act.ended("succeeded") >= count, STUCK_SECONDS, why="progress")


def _await_work(act: Act, worker: Kept) -> None:
    def is_working() -> bool:
        if "queued" not in act.watcher.states.values():
            act.submit("steps", 2)
        return bool(act.injuries.held_by(worker))

    act.until(is_working, why="work")


def _await_child(act: Act, worker: Kept) -> None:
    act.until(lambda: act.fleet.child_of(worker) is not None, READY_SECONDS, why="a worker")


def settle(act: Act) -> None:
    accepted = [entry["job"] for entry in act.journal.entries if entry["what"] == "accepted"]
    act.until(lambda: act.over(accepted), 4 * STUCK_SECONDS, why="the end of every job")


def test_every_accepted_job_ends_though_api_broker_and_workers_are_killed(quick: Act) -> None:
    kills: list[Callable[[], object]] = [
        quick.injuries.kill_api,
        lambda: quick.injuries.kill("main"),
        lambda: quick.injuries.kill("child"),
        lambda: quick.injuries.kill("runner"),
        lambda: quick.injuries.kill("tree"),
        lambda: quick.injuries.kill_server("kill_broker", quick.fleet.servers.broker, signal.SIGKILL),
    ]
    chosen = random.Random(1)  # noqa: S311 — for faults
    before = quick.ended("succeeded")
    with submitted_meanwhile(quick, "quick", JOBS) as all_accepted:
        for number in range(KILLS):
            _await_ended(quick, before + number * JOBS // (KILLS + 1))
            chosen.choice(kills)()
        quick.until(all_accepted, 4 * STUCK_SECONDS, why="acceptance")
    settle(quick)
    verdict = quick.verdict()
    assert verdict.kept, verdict
    assert (verdict.accepted, verdict.ended) == (JOBS, {"succeeded": JOBS})


def test_a_poison_job_is_given_up_and_the_others_go_on(quick: Act) -> None:
    [poison] = quick.submit("poison")
    others = quick.submit("quick", 6)
    quick.until(lambda: quick.over([poison, *others]), why="the end of every job")
    verdict = quick.verdict()
    assert verdict.kept, verdict
    assert quick.job(poison).attempt == MAX_ATTEMPTS
    begun = [event for event in quick.state().events if event.job == poison and event.status == "running"]
    assert len(begun) == MAX_ATTEMPTS


def test_a_broker_that_is_killed_under_load_takes_nothing_along(quick: Act) -> None:
    before = quick.ended("succeeded")
    with submitted_meanwhile(quick, "quick", 8 * BROKER_KILLS) as all_accepted:
        for number in range(BROKER_KILLS):
            _await_ended(quick, before + 4 * number)
            quick.injuries.kill_server("kill_broker", quick.fleet.servers.broker, signal.SIGKILL)
        quick.until(all_accepted, 4 * STUCK_SECONDS, why="acceptance")
    settle(quick)
    verdict = quick.verdict()
    assert verdict.kept, verdict
    state = quick.state()
    assert {job.attempt for job in state.jobs} == {1}, "no run depends on the broker"


def test_a_rolling_restart_fails_nothing_and_repeats_at_most_a_step(quick: Act) -> None:
    quick.submit("steps", 8)
    _await_work(quick, quick.fleet.workers[0])
    quick.injuries.note("rolling_restart")
    assert quick.fleet.terminate(quick.fleet.api) in (0, -signal.SIGTERM)
    quick.until(lambda: quick.fleet.api.pid is not None and quick.customer.is_ready(), READY_SECONDS, why="an API")
    for patient, worker in zip((True, False), quick.fleet.workers, strict=True):
        _await_work(quick, worker)
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        if not patient:  # an operator who does not wait for the running job: it is handed back
            worker.process.send_signal(signal.SIGQUIT)
        worker.process.wait(READY_SECONDS)
        _await_child(quick, worker)
    settle(quick)
    verdict = quick.verdict()
    assert verdict.kept, verdict
    assert not [entry for entry in quick.journal.entries if entry["what"] == "refused"], "no answer was an error"
    for job in quick.state().jobs:
        assert job.attempt == 1, "a job that is handed back does not lose an attempt"
        assert job.summary["begun"] <= job.summary["steps"] + 1


def test_readiness_follows_the_servers(quick: Act) -> None:
    quick.fleet.servers.broker.stop()
    try:
        with httpx.Client(base_url=quick.fleet.url, timeout=10, trust_env=False) as client:
            quick.until(lambda: client.get("/readyz").status_code == httpx.codes.SERVICE_UNAVAILABLE, why="the news")
            assert quick.submit("quick"), "jobs are accepted all the same"
    finally:
        quick.fleet.servers.broker.start()
    settle(quick)
    quick.until(quick.customer.is_ready, why="readiness")
