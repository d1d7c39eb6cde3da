"""How an attempt ends, and the one fenced write that says so."""

from dataclasses import dataclass, replace
from enum import Enum, auto

import structlog

from jobs.errors import JobProblem
from jobs.lease import Claim, LeaseKeeper, Manifest
from worker.problems import INSUFFICIENT_MEMORY, as_problem, internal_error

logger = structlog.get_logger(__name__)


class Outcome(Enum):
    """How an attempt ends."""

    SUCCEEDED = auto()  # published
    FAILED = auto()  # ended by a problem; the job is over
    CANCELLED = auto()  # stopped by request; the job is over
    STARVED = auto()  # ran out of memory for the first time; another attempt resumes, and runs with less
    CRASHED = auto()  # the subprocess died; another attempt resumes, while there are any left
    DRAINED = auto()  # this worker is being stopped; another one resumes, and the attempt does not count
    LOST = auto()  # the claim went to someone else, or we can not know; nothing may be written


@dataclass(frozen=True)
class Ending:
    """An outcome and what belongs to it."""

    outcome: Outcome
    problem: JobProblem | None = None
    manifest: Manifest | None = None


class FinalWrite:
    """The one write that ends the attempt."""

    def __init__(self, keeper: LeaseKeeper, claim: Claim, ending: Ending) -> None:
        self._keeper = keeper
        self._claim = claim
        self._ending = ending

    def __call__(self) -> Outcome:
        """Write it. Raises: Unavailable, and may then be called again."""
        keeper, claim, ending = self._keeper, self._claim, self._ending
        landed = False
        match ending.outcome:
            case Outcome.SUCCEEDED if ending.manifest is not None:
                return self._publish(ending.manifest)
            case Outcome.FAILED if ending.problem is not None:
                return self._fail(ending.problem)
            case Outcome.CANCELLED:
                landed = keeper.cancelled(claim)
            case Outcome.CRASHED:
                landed = keeper.release(claim, "crash")
            case Outcome.DRAINED:
                landed = keeper.release(claim, "drain")
        return ending.outcome if landed else Outcome.LOST

    def _fail(self, problem: JobProblem) -> Outcome:
        if problem.code != INSUFFICIENT_MEMORY:
            return Outcome.FAILED if self._keeper.fail(self._claim, problem) else Outcome.LOST
        if not self._claim.low_memory:
            return Outcome.STARVED if self._keeper.release(self._claim, "low_memory") else Outcome.LOST
        told = replace(problem, detail=f"{problem.detail} It did so before, with larger batches.")
        return Outcome.FAILED if self._keeper.fail(self._claim, told) else Outcome.LOST

    def _publish(self, manifest: Manifest) -> Outcome:
        try:
            if self._keeper.publish(self._claim, manifest):
                return Outcome.SUCCEEDED
        except ValueError:
            logger.exception("result_refused")
            problem = as_problem(internal_error("The run's result is not in the shape that was agreed."))
            return Outcome.FAILED if self._keeper.fail(self._claim, problem) else Outcome.LOST
        return Outcome.CANCELLED if self._keeper.cancelled(self._claim) else Outcome.LOST
