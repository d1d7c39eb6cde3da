"""How an attempt ends, and the one fenced write that says so."""

from dataclasses import dataclass, replace

import structlog

from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.kit.errors import JobProblem
from worker.outcomes import Outcome
from worker.subprocesses.problems import INSUFFICIENT_MEMORY, as_problem, internal_error

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ending:
    """An outcome and what belongs to it."""

    outcome: Outcome
    problem: JobProblem | None = None
    manifest: Manifest | None = None


class FinalWrite:
    """The one write that ends the attempt."""

    def __init__(self, leases: JobLeases, claim: Claim, ending: Ending) -> None:
        self._leases = leases
        self._claim = claim
        self._ending = ending

    def __call__(self) -> Outcome:
        """Write it. Raises: Unavailable, and may then be called again."""
        leases, claim, ending = self._leases, self._claim, self._ending
        landed = False
        match ending.outcome:
            case Outcome.SUCCEEDED if ending.manifest is not None:
                return self._publish(ending.manifest)
            case Outcome.FAILED if ending.problem is not None:
                return self._fail(ending.problem)
            case Outcome.CANCELLED:
                landed = leases.cancelled(claim)
            case Outcome.CRASHED:
                landed = leases.release(claim, "crash")
            case Outcome.DRAINED:
                landed = leases.release(claim, "drain")
        return ending.outcome if landed else Outcome.LOST

    def _fail(self, problem: JobProblem) -> Outcome:
        if problem.code != INSUFFICIENT_MEMORY:
            return Outcome.FAILED if self._leases.fail(self._claim, problem) else Outcome.LOST
        if not self._claim.low_memory:
            return Outcome.STARVED if self._leases.release(self._claim, "low_memory") else Outcome.LOST
        told = replace(problem, detail=f"{problem.detail} It did so before, with larger batches.")
        return Outcome.FAILED if self._leases.fail(self._claim, told) else Outcome.LOST

    def _publish(self, manifest: Manifest) -> Outcome:
        try:
            if self._leases.publish(self._claim, manifest):
                return Outcome.SUCCEEDED
        except ValueError:
            logger.exception("result_refused")
            problem = as_problem(internal_error("The run's result is not in the shape that was agreed."))
            return Outcome.FAILED if self._leases.fail(self._claim, problem) else Outcome.LOST
        return Outcome.CANCELLED if self._leases.cancelled(self._claim) else Outcome.LOST
