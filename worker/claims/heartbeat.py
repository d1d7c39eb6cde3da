"""The heartbeats and fenced writes of one claim, sent to the database by a thread of their own.

The thread that watches the runner never waits for the database. It calls :meth:`ClaimHeartbeat.state`, which uses only
memory and the monotonic clock. So a database that hangs can not let a runner live longer than its lease.
"""

import contextlib
import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol, Self, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs.kit.errors import Unavailable
from jobs.kit.leases import HeartbeatResult
from jobs.settings import Settings

_GIVE_UP_PART_OF_LEASE: Final = 5 / 6
"""The runner is killed after this part of the lease without a good beat (25 of 30 seconds), before the lease ends."""

_RETRY_SECONDS: Final = 0.5
_JOIN_SECONDS: Final = 5.0

Answer = TypeVar("Answer")
logger = structlog.get_logger(__name__)


class LeaseRenewer(Protocol):
    """Something that renews leases, of jobs or of publications."""

    def heartbeat(self, claim: Any, /) -> HeartbeatResult:
        """Renew the lease of the claim. Raises: Unavailable."""
        ...


class ClaimState(Enum):
    """What the latest heartbeat means for the runner."""

    HELD = auto()  # the claim is valid: the runner continues
    CANCEL = auto()  # the claim is valid, and a cancel was requested
    DEADLINE = auto()  # the claim is valid, and the job's time is used up
    LOST = auto()  # the claim is another worker's, or it is not known to be valid


@dataclass
class _Entry:
    write: Callable[[], Any]
    written: Future[Any] | None = None


class ClaimHeartbeat:
    """The heartbeat of one claim, a context manager. ``claimed_at`` is the monotonic time just before the claim."""

    def __init__(
        self,
        leases: LeaseRenewer,
        claim: Any,
        *,
        claimed_at: float,
        heartbeat_seconds: float,
        give_up_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._claim = claim
        self._heartbeat_seconds = heartbeat_seconds
        self._give_up_seconds = give_up_seconds
        self._clock = clock
        # The claim itself is the first renewal of the lease.
        self._beaten_at = claimed_at
        self._beat = HeartbeatResult(ok=True)
        self._ends_at = math.inf
        self._entries: queue.Queue[_Entry | None] = queue.Queue()
        self._closing = threading.Event()
        # The thread runs in a copy of the caller's context, so that its log lines carry the same ids.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="heartbeat", daemon=True)

    @classmethod
    def of(cls, leases: LeaseRenewer, claim: Any, settings: Settings, *, claimed_at: float) -> Self:
        """Make one with the operator's heartbeat interval and lease."""
        return cls(
            leases,
            claim,
            claimed_at=claimed_at,
            heartbeat_seconds=settings.heartbeat_seconds,
            give_up_seconds=settings.lease_seconds * _GIVE_UP_PART_OF_LEASE,
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        # Wakes the thread, which may wait for its next entry.
        self._entries.put(None)
        self._thread.join(_JOIN_SECONDS)

    def state(self) -> ClaimState:
        """Return whether the runner may continue; never block."""
        if not self._beat.ok or self._is_overdue():
            return ClaimState.LOST
        if self._beat.cancel_requested:
            return ClaimState.CANCEL
        return ClaimState.DEADLINE if self._clock() >= self._ends_at else ClaimState.HELD

    def allow(self, run_seconds: float | None) -> None:
        """Let the runner continue for ``run_seconds`` from now (None: no limit), until the next heartbeat corrects it.

        Between two heartbeats the local clock decides, so that a deadline is met to the second.
        """
        self._ends_at = math.inf if run_seconds is None else self._clock() + run_seconds

    def silent_seconds(self) -> float:
        """Return the seconds since the latest good heartbeat."""
        return self._clock() - self._beaten_at

    def post(self, write: Callable[[], bool]) -> None:
        """Queue ``write``, which runs after earlier writes. It is dropped if the claim is lost first."""
        self._entries.put(_Entry(write))

    def settle(self, write: Callable[[], Answer]) -> Answer | None:
        """Do the claim's last write after all others, and end the heartbeats. Returns None if the claim was lost."""
        written: Future[Answer | None] = Future()
        self._entries.put(_Entry(write, written))
        # Short waits: if the thread dies without an answer, the caller must not wait for ever.
        while self._thread.is_alive() or written.done():
            with contextlib.suppress(TimeoutError):
                return written.result(timeout=_RETRY_SECONDS)
        return None

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            # Without this thread nothing renews the lease, so the claim counts as lost.
            self._beat = HeartbeatResult(ok=False)

    def _serve(self) -> None:
        entry: _Entry | None = None
        next_beat = self._beaten_at + self._heartbeat_seconds
        while not self._closing.is_set():
            if self._is_overdue():
                # The thread that watches the runner has given up. A heartbeat now, after this process was frozen or the
                # database was away, would renew the lease of a job that no runner works on.
                logger.warning("claim_timed_out", silent_seconds=round(self.silent_seconds(), 1))
                break
            now = self._clock()
            if now >= next_beat:
                next_beat = now + (self._heartbeat_seconds if self._try_beat(now) else _RETRY_SECONDS)
            if entry is None:
                entry = self._next(max(next_beat - self._clock(), 0.0))
            if entry is not None and self._try_write(entry):
                entry = None
        self._abandon(entry)

    def _is_overdue(self) -> bool:
        return self.silent_seconds() > self._give_up_seconds

    def _next(self, timeout: float) -> _Entry | None:
        try:
            return self._entries.get(timeout=timeout)
        except queue.Empty:
            return None

    def _try_beat(self, asked_at: float) -> bool:
        """Send one heartbeat; return False if the database does not answer.

        The lease counts from ``asked_at``, the time before the question: it was not renewed earlier than that.
        """
        try:
            beat = self._leases.heartbeat(self._claim)
        except Unavailable:
            logger.warning("heartbeat_failed", silent_seconds=round(self.silent_seconds(), 1))
            return False
        self._beat = beat
        if beat.ok:
            self._beaten_at = asked_at
            self.allow(beat.run_seconds_left)
        else:
            logger.warning("claim_lost")
        return True

    def _try_write(self, entry: _Entry) -> bool:
        """Do a write; return False if the same entry has to be tried again."""
        answer = None
        if self.state() is not ClaimState.LOST:
            try:
                answer = entry.write()
            except Unavailable:
                # Not longer than a heartbeat interval, because heartbeats are sent by this same thread.
                self._closing.wait(min(_RETRY_SECONDS, self._heartbeat_seconds))
                return False
            except (SQLAlchemyError, ValueError):
                # The database refuses the row: trying again changes nothing, and one bad row must not end a good run.
                logger.exception("write_refused")
        if entry.written is not None:
            entry.written.set_result(answer)
            self._closing.set()
        return True

    def _abandon(self, entry: _Entry | None) -> None:
        while entry is not None or not self._entries.empty():
            # Callers of settle() wait for an answer; None means that the claim was lost.
            if entry is not None and entry.written is not None and not entry.written.done():
                entry.written.set_result(None)
            entry = self._next(0.0)
