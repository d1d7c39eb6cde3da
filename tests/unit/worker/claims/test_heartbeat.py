"""Heartbeats and fenced writes from a thread of their own, against leases that the test scripts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog
from sqlalchemy.exc import StatementError

from jobs.job.lease import Claim
from jobs.kit.errors import Unavailable
from jobs.kit.leases import HeartbeatResult
from worker.claims.heartbeat import ClaimHeartbeat, ClaimState

CLAIM = Claim(job_id="job_1", fence=3, attempt=1, max_attempts=3, tenant="default", owner="host:1", spec={})


class ScriptedLeases:
    """A fake at the port: answers every heartbeat with ``beat``, or fails while ``down``."""

    def __init__(self) -> None:
        self.beat = HeartbeatResult(ok=True)
        self.down = False
        self.beats = 0
        self.hanging = threading.Event()
        self.hanging.set()

    def heartbeat(self, claim: Claim) -> HeartbeatResult:
        assert claim is CLAIM
        self.hanging.wait(10)
        self.beats += 1
        if self.down:
            raise Unavailable
        return self.beat


@pytest.fixture
def leases() -> ScriptedLeases:
    return ScriptedLeases()


@contextmanager
def heartbeat_of(
    leases: ScriptedLeases,
    *,
    every: float = 0.05,
    give_up: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ClaimHeartbeat]:
    heartbeat = ClaimHeartbeat(
        leases,  # type: ignore[arg-type]  # a fake at the port
        CLAIM,
        claimed_at=clock(),
        heartbeat_seconds=every,
        give_up_seconds=give_up,
        clock=clock,
    )
    with heartbeat:
        yield heartbeat


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_beats_keep_the_claim(leases: ScriptedLeases) -> None:
    with heartbeat_of(leases) as heartbeat:
        eventually(lambda: leases.beats >= 15)  # longer than it takes to give up
        assert heartbeat.state() is ClaimState.HELD


@pytest.mark.parametrize(
    ("beat", "state"),
    [
        (HeartbeatResult(ok=False), ClaimState.LOST),
        (HeartbeatResult(ok=True, cancel_requested=True), ClaimState.CANCEL),
        (HeartbeatResult(ok=True, run_seconds_left=0.0), ClaimState.DEADLINE),
        (HeartbeatResult(ok=True, cancel_requested=True, run_seconds_left=0.0), ClaimState.CANCEL),
        (HeartbeatResult(ok=False, cancel_requested=True), ClaimState.LOST),
    ],
)
def test_what_a_beat_means(leases: ScriptedLeases, beat: HeartbeatResult, state: ClaimState) -> None:
    leases.beat = beat
    with heartbeat_of(leases) as heartbeat:
        eventually(lambda: heartbeat.state() is state)


def test_a_deadline_is_met_between_two_beats(leases: ScriptedLeases) -> None:
    with heartbeat_of(leases, every=60, give_up=60) as heartbeat:
        heartbeat.allow(0.3)
        began = time.monotonic()
        assert heartbeat.state() is ClaimState.HELD
        eventually(lambda: heartbeat.state() is ClaimState.DEADLINE)
        assert time.monotonic() - began >= 0.3
        assert leases.beats == 0
        heartbeat.allow(None)
        assert heartbeat.state() is ClaimState.HELD


def test_every_beat_says_anew_how_much_time_is_left(leases: ScriptedLeases) -> None:
    leases.beat = HeartbeatResult(ok=True, run_seconds_left=60.0)
    with heartbeat_of(leases) as heartbeat:
        heartbeat.allow(0.0)
        eventually(lambda: heartbeat.state() is ClaimState.HELD)


def test_silence_loses_the_claim_before_the_lease_ends(leases: ScriptedLeases) -> None:
    leases.down = True
    with heartbeat_of(leases, give_up=0.4) as heartbeat:
        began = time.monotonic()
        assert heartbeat.state() is ClaimState.HELD
        eventually(lambda: heartbeat.state() is ClaimState.LOST)
        assert 0.3 < time.monotonic() - began < 1.0


def test_a_database_that_hangs_does_not_hide_the_silence(leases: ScriptedLeases) -> None:
    leases.hanging.clear()
    with heartbeat_of(leases, give_up=0.4) as heartbeat:
        eventually(lambda: heartbeat.state() is ClaimState.LOST, seconds=1.0)
        leases.hanging.set()


def test_a_process_that_was_frozen_does_not_renew_what_it_gives_up(leases: ScriptedLeases) -> None:
    slept = 0.0
    with heartbeat_of(leases, every=1.0, give_up=60.0, clock=lambda: time.monotonic() + slept) as heartbeat:
        assert heartbeat.state() is ClaimState.HELD
        slept = 61.0
        assert heartbeat.state() is ClaimState.LOST
        assert heartbeat.settle(lambda: "done") is None
    assert leases.beats == 0


def test_a_database_that_comes_back_too_late_is_told_nothing_more(leases: ScriptedLeases) -> None:
    leases.down = True
    with heartbeat_of(leases, give_up=0.3) as heartbeat:
        eventually(lambda: heartbeat.state() is ClaimState.LOST)
        leases.down, before = False, leases.beats
        time.sleep(0.8)
        assert leases.beats <= before + 1, "none but the one that was under way"
        assert heartbeat.state() is ClaimState.LOST


def test_a_short_outage_is_survived(leases: ScriptedLeases) -> None:
    with heartbeat_of(leases, give_up=3.0) as heartbeat:
        leases.down = True
        eventually(lambda: leases.beats >= 2)
        leases.down = False
        before = leases.beats
        eventually(lambda: leases.beats > before + 5)
        assert heartbeat.state() is ClaimState.HELD


def test_writes_keep_their_order_and_the_last_is_answered(leases: ScriptedLeases) -> None:
    written: list[int] = []
    with heartbeat_of(leases) as heartbeat:
        for number in range(50):
            heartbeat.post(lambda number=number: written.append(number) or True)  # type: ignore[misc]
        assert heartbeat.settle(lambda: "done") == "done"
    assert written == list(range(50))


def test_a_write_waits_out_an_outage(leases: ScriptedLeases) -> None:
    answers: list[Exception | str] = [Unavailable(), Unavailable(), "landed"]

    def write() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with heartbeat_of(leases, give_up=5.0) as heartbeat:
        assert heartbeat.settle(write) == "landed"
    assert not answers


def test_a_refused_row_does_not_end_the_run(leases: ScriptedLeases) -> None:
    def refused() -> bool:
        raise StatementError("a bad row", "INSERT", {}, ValueError("bad"))

    with heartbeat_of(leases) as heartbeat:
        heartbeat.post(refused)
        assert heartbeat.settle(lambda: "done") == "done"


def test_nothing_is_written_once_the_claim_is_lost(leases: ScriptedLeases) -> None:
    leases.beat = HeartbeatResult(ok=False)
    written: list[int] = []
    with heartbeat_of(leases) as heartbeat:
        eventually(lambda: heartbeat.state() is ClaimState.LOST)
        heartbeat.post(lambda: written.append(1) or True)  # type: ignore[func-returns-value]
        assert heartbeat.settle(lambda: "done") is None
    assert not written


def test_no_beat_follows_the_last_write(leases: ScriptedLeases) -> None:
    with heartbeat_of(leases) as heartbeat:
        heartbeat.settle(lambda: True)
        before = leases.beats
        time.sleep(0.3)
    assert leases.beats == before


def test_log_events_of_the_thread_carry_the_jobs_ids(leases: ScriptedLeases) -> None:
    leases.beat = HeartbeatResult(ok=False)
    with (
        structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as events,
        structlog.contextvars.bound_contextvars(job_id="job_1", fence=3),
        heartbeat_of(leases) as heartbeat,
    ):
        eventually(lambda: heartbeat.state() is ClaimState.LOST)
        eventually(lambda: len(events) == 1)
    assert events == [{"event": "claim_lost", "job_id": "job_1", "fence": 3, "log_level": "warning"}]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_means_a_lost_claim(leases: ScriptedLeases) -> None:
    def broken() -> bool:
        raise RuntimeError("a bug")

    with heartbeat_of(leases, give_up=60.0) as heartbeat:
        heartbeat.post(broken)
        eventually(lambda: heartbeat.state() is ClaimState.LOST)
        assert heartbeat.settle(lambda: "done") is None
