"""Seeing an attempt's steps through: what its subprocesses say, and whether it may go on at all.

Every step that can not go on raises :class:`Ended`, which carries the attempt's ending to where it is written.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from jobs.kit.errors import run_deadline
from worker.attempts.outcome import Ending
from worker.attempts.reporter import Reporter
from worker.claims.heartbeat import ClaimHeartbeat, ClaimState
from worker.outcomes import Outcome
from worker.subprocesses.child import Child, Command
from worker.subprocesses.messages import Error, Message, Resolved, Result
from worker.subprocesses.problems import as_problem, insufficient_memory

POLL_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 3.0  # with a heartbeat of 10 s, a cancelled runner is gone within 15

logger = structlog.get_logger(__name__)


class Ended(Exception):
    """Not an error: carries an ending from the step that found it to the attempt."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.outcome.name)
        self.ending = ending


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One attempt's eyes. ``oom_kills`` counts what the kernel killed for memory; None where nobody counts."""

    heartbeat: ClaimHeartbeat
    reporter: Reporter
    must_yield: Callable[[], bool]
    oom_kills: Callable[[], int | None]
    keep_revision: Callable[[str], None]
    max_run_seconds: int

    def require_right(self) -> None:
        """Raises: Ended: the claim or the worker's end demands that this attempt stop."""
        state = self.heartbeat.state()
        if state is ClaimState.LOST:
            logger.warning("claim_given_up", silent_seconds=round(self.heartbeat.silent_seconds(), 1))
            raise Ended(Ending(Outcome.LOST))
        if self.must_yield():
            raise Ended(Ending(Outcome.DRAINED))
        if state is ClaimState.CANCEL:
            raise Ended(Ending(Outcome.CANCELLED))
        if state is ClaimState.DEADLINE:
            raise Ended(Ending(Outcome.FAILED, run_deadline(self.max_run_seconds)))

    def wait(self, seconds: float) -> None:
        """Let time pass for as long as this attempt may go on. Raises: Ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.require_right()
            self.reporter.flush()
            time.sleep(POLL_SECONDS)

    def follow(self, command: Command) -> dict[str, Any]:
        """Start a subprocess, follow it to its end and return its result's payload. Raises: Ended."""
        killed_before = self.oom_kills()
        with Child(command) as child:
            logger.info("subprocess_started", program=command.arguments[-2], pid=child.pid)
            verdict: Result | Error | None = None
            exited = False
            while not exited:
                exited = child.has_exited()  # asked before reading: then the pipe holds all there will ever be
                verdict = self._report(child.drain() if exited else child.receive(POLL_SECONDS)) or verdict
                if not exited:
                    self._interrupt(child)
            return self._judge(child, verdict, killed_before)

    def _report(self, messages: list[Message]) -> Result | Error | None:
        verdict: Result | Error | None = None
        for message in messages:
            if isinstance(message, Result | Error):
                verdict = message
            elif isinstance(message, Resolved):
                self.keep_revision(message.revision)
            else:
                self.reporter.handle(message)
        self.reporter.flush()
        return verdict

    def _interrupt(self, child: Child) -> None:
        """Stop the subprocess if the claim or the worker's end demands it."""
        try:
            self.require_right()
        except Ended as ended:
            at_once = ended.ending.outcome in {Outcome.LOST, Outcome.DRAINED}
            child.stop(grace=0 if at_once else _GRACE_SECONDS)
            raise

    def _judge(self, child: Child, verdict: Result | Error | None, killed_before: int | None) -> dict[str, Any]:
        code = child.exit_code()
        if isinstance(verdict, Result) and code == os.EX_OK:
            return verdict.payload
        error = verdict if isinstance(verdict, Error) else None
        event = "subprocess_died" if error is None else "subprocess_failed"
        logger.error(event, code=error and error.code, exit_code=code, log_tail=child.log_tail())
        # The kernel may have taken a process of the run, which then tells of a failure that it can not explain.
        suspicious = code == -signal.SIGKILL if error is None else error.category == "platform"
        if suspicious and self._kernel_killed_since(killed_before):
            error = insufficient_memory("The machine ran out of memory, and the kernel ended the run.")
        raise Ended(Ending(Outcome.CRASHED) if error is None else Ending(Outcome.FAILED, as_problem(error)))

    def _kernel_killed_since(self, before: int | None) -> bool:
        now = self.oom_kills()
        return before is not None and now is not None and now > before
