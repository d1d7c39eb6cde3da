"""P3 and P4: a crash resumes within a minute, and a process that wakes up too late changes nothing.

``QUANTRY_TEST_SCALE=full``: 20 kills of each sort and 10 of each freeze, with the lease, heartbeat and sweep that an
operator gets who sets nothing (30, 10 and 5 s); otherwise 1 of each, with leases of three seconds.
"""

import signal

import psutil
import pytest

from tests.faults.checker import STUCK_SECONDS, quantile
from tests.faults.failpoints import FailPoint, arm, fired
from tests.faults.injuries import Part, send
from tests.faults.promises.act import READY_SECONDS, Act
from tests.faults.scale import scaled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROUNDS = scaled(1, 20)
FREEZES = scaled(1, 10)
KILLED: tuple[tuple[Part, ...], ...] = (("runner",), ("main",), ("child", "tree"))
"""Of one worker, or of both at the same time: one is left without its supervisor, of the other nothing is left."""


def test_a_crash_is_over_within_a_minute(recovering: Act) -> None:
    for _ in range(ROUNDS):
        for parts in KILLED:
            _kill(recovering, parts)
        _kill_broker(recovering)
    verdict = recovering.verdict()
    assert verdict.kept, verdict
    seconds = [recovery.seconds for recovery in verdict.recoveries]
    assert len(seconds) == 5 * ROUNDS
    assert max(seconds) <= STUCK_SECONDS, verdict.recoveries
    assert (quantile(seconds, 0.5) or 0.0) < 10.0, verdict.recoveries
    assert all(job.summary["begun"] <= job.summary["steps"] + 2 for job in recovering.state().jobs), "steps are resumed"


def _kill(act: Act, parts: tuple[Part, ...]) -> None:
    act.until(lambda: all(act.fleet.child_of(worker) for worker in act.fleet.workers), READY_SECONDS, why="workers")
    jobs = act.submit("medium", len(parts))
    act.until(lambda: all(act.working(job) for job in jobs), READY_SECONDS, why="work")
    holders = [next(kept for kept in act.fleet.workers if job in act.injuries.held_by(kept)) for job in jobs]
    for part, worker in zip(parts, holders, strict=True):
        act.injuries.kill(part, worker)
    more = act.submit("quick")
    act.until(lambda: act.over([*jobs, *more]), 3 * STUCK_SECONDS, why="the end of every job")


def _kill_broker(act: Act) -> None:
    jobs = act.submit("quick", 4)
    act.injuries.kill_server("kill_broker", act.fleet.servers.broker, signal.SIGKILL)
    jobs += act.submit("quick", 2)
    act.until(lambda: act.over(jobs), 3 * STUCK_SECONDS, why="the end of every job")


def test_a_worker_that_wakes_up_after_its_lease_changes_nothing(quick: Act) -> None:
    for _ in range(FREEZES):
        _freeze(quick)
    verdict = quick.verdict()
    assert verdict.kept, verdict


def _freeze(act: Act) -> None:
    [job] = act.submit("steps")
    act.until(lambda: act.working(job), why="work")
    [worker] = [kept for kept in act.fleet.workers if job in act.injuries.held_by(kept)]
    frozen = worker.family()
    stale = act.fleet.runner_of(worker)
    assert stale is not None
    act.injuries.note("freeze_tree", [job])
    send(frozen, signal.SIGSTOP)
    act.until(lambda: act.over([job]), why="the end of the job, elsewhere")
    _thaw_and_compare(act, frozen, stale)


def test_a_worker_that_stops_in_the_middle_of_publishing_publishes_nothing(quick: Act) -> None:
    for _ in range(FREEZES):
        _stop_while_storing(quick)
    verdict = quick.verdict()
    assert verdict.kept, verdict


def _stop_while_storing(act: Act) -> None:
    [job] = act.submit("steps")
    act.until(lambda: act.steps_done(job) >= 8, why="nearly the end")
    data_dir, before = act.fleet.data_dir, len(list(fired(act.fleet.data_dir)))
    # The next thing that the supervisor renames is the first file of the result, on its way into the store.
    arm(data_dir, FailPoint("worker", "rename", "before", 1, signum=signal.SIGSTOP))
    act.until(lambda: len(list(fired(data_dir))) > before, why="the stop")
    stopped = psutil.Process(list(fired(data_dir))[-1].pid)
    act.until(lambda: act.over([job]), why="the end of the job, elsewhere")
    _thaw_and_compare(act, [stopped], None)


def _thaw_and_compare(act: Act, frozen: list[psutil.Process], stale: psutil.Process | None) -> None:
    """What the first finisher published stands, to the last row, when the other one wakes up."""
    published = act.state()
    send(reversed(frozen), signal.SIGCONT)
    if stale is not None:
        act.until(
            lambda: not stale.is_running() or stale.status() == psutil.STATUS_ZOMBIE, why="the stale runner's end"
        )
    more = act.submit("quick", 4)
    act.until(lambda: act.over(more), why="work after the freeze")
    after = act.state()
    for before, now in ((published.jobs, after.jobs), (published.events, after.events)):
        assert set(map(repr, before)) <= set(map(repr, now)), "no row has changed"
    assert len([event for event in after.events if event.job not in more]) == len(published.events), "none was added"
    assert {artifact for artifact in after.artifacts if artifact.job not in more} == set(published.artifacts)
