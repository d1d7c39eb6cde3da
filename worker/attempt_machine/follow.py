"""The loop that follows a subprocess to its end, while the claim is valid and the worker does not stop.

A step that can not continue raises :class:`~worker.attempt_machine.ending.Ended`, which carries the attempt's ending to
the code that stores it.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from worker.attempt_machine.ending import CLAIM_LOST, Ended, Ending, Endings
from worker.claims.heartbeat import ClaimHeartbeat, ClaimState
from worker.outcomes import Outcome
from worker.subprocesses.child import Child, Command
from worker.subprocesses.messages import Error, Message, Result

POLL_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 3.0  # with a heartbeat of 10 s, a cancelled subprocess is gone within 15

Explanation = Callable[[Error | None, int], Error | None]
"""A function of the error that a failed subprocess reported (or None) and its exit code. It returns the final error."""

logger = structlog.get_logger(__name__)


def as_reported(error: Error | None, _exit_code: int) -> Error | None:
    """Return the error that the subprocess reported."""
    return error


@dataclass(frozen=True, kw_only=True)
class Follower:
    """Follows the subprocesses of one attempt. Used by one thread.

    ``must_yield``: whether the worker has to hand back its claim now. ``stops``: the endings for other states of the
    claim, such as a cancel. ``on_message`` receives all messages except results and errors; ``on_poll`` is called a
    few times a second.
    ``failures_are_errors``: log what a subprocess reports as an error, with the end of its log, and not as a warning.
    """

    heartbeat: ClaimHeartbeat
    endings: Endings
    must_yield: Callable[[], bool]
    stops: Mapping[ClaimState, Callable[[], Ending]] = field(default_factory=dict)
    on_message: Callable[[Message], None]
    on_poll: Callable[[], None] = lambda: None
    failures_are_errors: bool = True

    def require_claim(self) -> None:
        """Raise Ended if the claim is lost, was cancelled or is out of time, or if the worker stops."""
        state = self.heartbeat.state()
        if state is ClaimState.LOST:
            logger.warning("claim_given_up", silent_seconds=round(self.heartbeat.silent_seconds(), 1))
            raise Ended(CLAIM_LOST)
        # After the check for LOST, because a lost claim can not be handed back.
        if self.must_yield():
            raise Ended(self.endings.drained())
        if state in self.stops:
            raise Ended(self.stops[state]())

    def wait(self, seconds: float) -> None:
        """Wait ``seconds`` while the attempt may continue. Raises: Ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.require_claim()
            self.on_poll()
            time.sleep(POLL_SECONDS)

    def follow(self, command: Command, *, explain: Explanation = as_reported) -> dict[str, Any]:
        """Start a subprocess, follow it to its end and return the payload of its result.

        Raises:
            Ended: the attempt may not continue, or the subprocess ended without a result.
        """
        with Child(command) as child:
            logger.info("subprocess_started", program=command.arguments[-2], pid=child.pid)
            verdict: Result | Error | None = None
            exited = False
            while not exited:
                # Asked before reading: once the process has ended, the pipe holds all that will ever come.
                exited = child.has_exited()
                verdict = self._receive(child.drain() if exited else child.receive(POLL_SECONDS)) or verdict
                if not exited:
                    self._interrupt(child)
            code = child.exit_code()
            # A result alone is not enough: the process may have failed after it sent that.
            if isinstance(verdict, Result) and code == os.EX_OK:
                return verdict.payload
            raise Ended(self._ending(child, verdict if isinstance(verdict, Error) else None, code, explain))

    def _receive(self, messages: list[Message]) -> Result | Error | None:
        verdict: Result | Error | None = None
        for message in messages:
            if isinstance(message, Result | Error):
                verdict = message
            else:
                self.on_message(message)
        self.on_poll()
        return verdict

    def _interrupt(self, child: Child) -> None:
        """Stop the subprocess if the claim or the worker ends."""
        try:
            self.require_claim()
        except Ended as ended:
            # A lost claim may have a new runner already, and a draining worker has little time: no grace for these.
            at_once = ended.ending.outcome in {Outcome.LOST, Outcome.DRAINED}
            child.stop(grace=0 if at_once else _GRACE_SECONDS)
            raise

    def _ending(self, child: Child, error: Error | None, code: int, explain: Explanation) -> Ending:
        """Return the ending of a subprocess that is gone and left no result."""
        if error is None:
            logger.error("subprocess_died", exit_code=code, log_tail=child.log_tail())
        else:
            self._log_failure(child, error, code)
        explained = explain(error, code)
        return self.endings.crashed() if explained is None else self.endings.reported(explained)

    def _log_failure(self, child: Child, error: Error, code: int) -> None:
        # The log of the subprocess is only worth its space if the operator has to look into the failure.
        if self.failures_are_errors:
            logger.error("subprocess_failed", code=error.code, exit_code=code, log_tail=child.log_tail())
        else:
            logger.warning("subprocess_failed", code=error.code, detail=error.detail, exit_code=code)
