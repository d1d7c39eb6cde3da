"""How an attempt ends: an outcome, and the one fenced write that stores it."""

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

    ``write`` stores it and returns the outcome that came of it; it may be called again after ``Unavailable``. None:
    the claim is lost, and nothing may be written. ``problem`` says why the attempt failed, where it did.
    """

    outcome: Outcome
    write: Callable[[], Outcome] | None = None
    problem: JobProblem | None = None

    @classmethod
    def fenced(cls, outcome: Outcome, write: Callable[[], bool], problem: JobProblem | None = None) -> Self:
        """``outcome``, if ``write`` changes a row; ``LOST``, if the claim's fence no longer lets it."""
        return cls(outcome, lambda: outcome if write() else Outcome.LOST, problem)

    def settle(self, heartbeat: ClaimHeartbeat) -> Outcome:
        """Store the ending after all earlier writes of the claim, and return the outcome that holds."""
        if self.write is None:
            return Outcome.LOST
        return heartbeat.settle(self.write) or Outcome.LOST


CLAIM_LOST: Final = Ending(Outcome.LOST)


class Ended(Exception):
    """Not an error: carries an ending from the step that found it to the attempt."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.outcome)
        self.ending = ending


class Endings(Protocol):
    """The endings that any subprocess may come to, of one claim."""

    def drained(self) -> Ending:
        """This worker stops: give the claim back."""
        ...

    def crashed(self) -> Ending:
        """The subprocess ended without a result and without an error."""
        ...

    def reported(self, error: Error) -> Ending:
        """The subprocess reported that it can not do the work, or can not do it now."""
        ...
