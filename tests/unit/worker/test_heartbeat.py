"""Heartbeats and fenced writes from a thread of their own, against a keeper that the test scripts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog
from sqlalchemy.exc import StatementError

from jobs.job.lease import Claim
from jobs.kit.errors import Unavailable
from jobs.kit.leases import Beat
from worker.claims.heartbeat import Ledger, Standing

CLAIM = Claim(job_id="job_1", fence=3, attempt=1, max_attempts=3, tenant="default", owner="host:1", spec={})


class ScriptedKeeper:
    """A fake at the port: answers every heartbeat with ``beat``, or fails while ``down``."""

    def __init__(self) -> None:
        self.beat = Beat(ok=True)
        self.down = False
        self.beats = 0
        self.hanging = threading.Event()
        self.hanging.set()

    def heartbeat(self, claim: Claim) -> Beat:
        assert claim is CLAIM
        self.hanging.wait(10)
        self.beats += 1
        if self.down:
            raise Unavailable
        return self.beat


@pytest.fixture
def keeper() -> ScriptedKeeper:
    return ScriptedKeeper()


@contextmanager
def ledger_of(
    keeper: ScriptedKeeper,
    *,
    heartbeat: float = 0.05,
    patience: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Ledger]:
    ledger = Ledger(
        keeper,  # type: ignore[arg-type]  # a fake at the port
        CLAIM,
        claimed_at=clock(),
        heartbeat_seconds=heartbeat,
        patience_seconds=patience,
        clock=clock,
    )
    with ledger:
        yield ledger


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_beats_keep_the_claim(keeper: ScriptedKeeper) -> None:
    with ledger_of(keeper) as ledger:
        eventually(lambda: keeper.beats >= 15)  # longer than the patience
        assert ledger.standing() is Standing.HELD


@pytest.mark.parametrize(
    ("beat", "standing"),
    [
        (Beat(ok=False), Standing.LOST),
        (Beat(ok=True, cancel_requested=True), Standing.CANCEL),
        (Beat(ok=True, run_seconds_left=0.0), Standing.DEADLINE),
        (Beat(ok=True, cancel_requested=True, run_seconds_left=0.0), Standing.CANCEL),
        (Beat(ok=False, cancel_requested=True), Standing.LOST),
    ],
)
def test_what_a_beat_means(keeper: ScriptedKeeper, beat: Beat, standing: Standing) -> None:
    keeper.beat = beat
    with ledger_of(keeper) as ledger:
        eventually(lambda: ledger.standing() is standing)


def test_a_deadline_is_met_between_two_beats(keeper: ScriptedKeeper) -> None:
    with ledger_of(keeper, heartbeat=60, patience=60) as ledger:
        ledger.allow(0.3)
        began = time.monotonic()
        assert ledger.standing() is Standing.HELD
        eventually(lambda: ledger.standing() is Standing.DEADLINE)
        assert time.monotonic() - began >= 0.3
        assert keeper.beats == 0
        ledger.allow(None)
        assert ledger.standing() is Standing.HELD


def test_every_beat_says_anew_how_much_time_is_left(keeper: ScriptedKeeper) -> None:
    keeper.beat = Beat(ok=True, run_seconds_left=60.0)
    with ledger_of(keeper) as ledger:
        ledger.allow(0.0)
        eventually(lambda: ledger.standing() is Standing.HELD)


def test_silence_loses_the_claim_before_the_lease_ends(keeper: ScriptedKeeper) -> None:
    keeper.down = True
    with ledger_of(keeper, patience=0.4) as ledger:
        began = time.monotonic()
        assert ledger.standing() is Standing.HELD
        eventually(lambda: ledger.standing() is Standing.LOST)
        assert 0.3 < time.monotonic() - began < 1.0


def test_a_database_that_hangs_does_not_hide_the_silence(keeper: ScriptedKeeper) -> None:
    keeper.hanging.clear()
    with ledger_of(keeper, patience=0.4) as ledger:
        eventually(lambda: ledger.standing() is Standing.LOST, seconds=1.0)
        keeper.hanging.set()


def test_a_process_that_was_frozen_does_not_renew_what_it_gives_up(keeper: ScriptedKeeper) -> None:
    slept = 0.0
    with ledger_of(keeper, heartbeat=1.0, patience=60.0, clock=lambda: time.monotonic() + slept) as ledger:
        assert ledger.standing() is Standing.HELD
        slept = 61.0
        assert ledger.standing() is Standing.LOST
        assert ledger.settle(lambda: "done") is None
    assert keeper.beats == 0


def test_a_database_that_comes_back_too_late_is_told_nothing_more(keeper: ScriptedKeeper) -> None:
    keeper.down = True
    with ledger_of(keeper, patience=0.3) as ledger:
        eventually(lambda: ledger.standing() is Standing.LOST)
        keeper.down, before = False, keeper.beats
        time.sleep(0.8)
        assert keeper.beats <= before + 1, "none but the one that was under way"
        assert ledger.standing() is Standing.LOST


def test_a_short_outage_is_survived(keeper: ScriptedKeeper) -> None:
    with ledger_of(keeper, patience=3.0) as ledger:
        keeper.down = True
        eventually(lambda: keeper.beats >= 2)
        keeper.down = False
        before = keeper.beats
        eventually(lambda: keeper.beats > before + 5)
        assert ledger.standing() is Standing.HELD


def test_writes_keep_their_order_and_the_last_is_answered(keeper: ScriptedKeeper) -> None:
    written: list[int] = []
    with ledger_of(keeper) as ledger:
        for number in range(50):
            ledger.post(lambda number=number: written.append(number) or True)  # type: ignore[misc]
        assert ledger.settle(lambda: "done") == "done"
    assert written == list(range(50))


def test_a_write_waits_out_an_outage(keeper: ScriptedKeeper) -> None:
    answers: list[Exception | str] = [Unavailable(), Unavailable(), "landed"]

    def write() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with ledger_of(keeper, patience=5.0) as ledger:
        assert ledger.settle(write) == "landed"
    assert not answers


def test_a_refused_row_does_not_end_the_run(keeper: ScriptedKeeper) -> None:
    def refused() -> bool:
        raise StatementError("a bad row", "INSERT", {}, ValueError("bad"))

    with ledger_of(keeper) as ledger:
        ledger.post(refused)
        assert ledger.settle(lambda: "done") == "done"


def test_nothing_is_written_once_the_claim_is_lost(keeper: ScriptedKeeper) -> None:
    keeper.beat = Beat(ok=False)
    written: list[int] = []
    with ledger_of(keeper) as ledger:
        eventually(lambda: ledger.standing() is Standing.LOST)
        ledger.post(lambda: written.append(1) or True)  # type: ignore[func-returns-value]
        assert ledger.settle(lambda: "done") is None
    assert not written


def test_no_beat_follows_the_last_write(keeper: ScriptedKeeper) -> None:
    with ledger_of(keeper) as ledger:
        ledger.settle(lambda: True)
        before = keeper.beats
        time.sleep(0.3)
    assert keeper.beats == before


def test_log_events_of_the_thread_carry_the_jobs_ids(keeper: ScriptedKeeper) -> None:
    keeper.beat = Beat(ok=False)
    with (
        structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as events,
        structlog.contextvars.bound_contextvars(job_id="job_1", fence=3),
        ledger_of(keeper) as ledger,
    ):
        eventually(lambda: ledger.standing() is Standing.LOST)
        eventually(lambda: len(events) == 1)
    assert events == [{"event": "claim_lost", "job_id": "job_1", "fence": 3, "log_level": "warning"}]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_means_a_lost_claim(keeper: ScriptedKeeper) -> None:
    def broken() -> bool:
        raise RuntimeError("a bug")

    with ledger_of(keeper, patience=60.0) as ledger:
        ledger.post(broken)
        eventually(lambda: ledger.standing() is Standing.LOST)
        assert ledger.settle(lambda: "done") is None
