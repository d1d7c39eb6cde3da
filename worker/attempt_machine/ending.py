"""The ending of an attempt: an outcome, and the one fenced write that stores it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from jobs.kit.errors import JobProblem
from worker.claims.heartbeat import ClaimHeartbeat
from worker.outcomes import Outcome
from worker.subprocesses.messages import Error


@dataclass(frozen=True)
class Ending:
    """An outcome that is not stored yet.

    ``write`` stores it and returns the outcome that the database accepted. It may be called again after
    ``Unavailable``. It is None if the claim is lost, because nothing may be written then. ``problem`` is the reason of
    a failure.
    """

    outcome: Outcome
    write: Callable[[], Outcome] | None = None
    problem: JobProblem | None = None

    @classmethod
    def fenced(cls, outcome: Outcome, write: Callable[[], bool], problem: JobProblem | None = None) -> Self:
        """Make an ending that is ``outcome`` if ``write`` changes a row, and ``LOST`` if the fence is too old."""
        return cls(outcome, lambda: outcome if write() else Outcome.LOST, problem)

    def settle(self, heartbeat: ClaimHeartbeat) -> Outcome:
        """Store the ending after all earlier writes of the claim, and return the final outcome."""
        if self.write is None:
            return Outcome.LOST
        return heartbeat.settle(self.write) or Outcome.LOST


CLAIM_LOST: Final = Ending(Outcome.LOST)


class Ended(Exception):
    """An ending on its way from the step that found it to the attempt. It is not an error."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.outcome)
        self.ending = ending


class Endings(Protocol):
    """The endings of one claim that any subprocess can lead to."""

    def drained(self) -> Ending:
        """The ending when this worker stops: the claim is given back."""
        ...

    def crashed(self) -> Ending:
        """The ending after a subprocess ended without a result and without an error."""
        ...

    def reported(self, error: Error) -> Ending:
        """The ending after the subprocess reported that it can not do the work, or can not do it now."""
        ...
