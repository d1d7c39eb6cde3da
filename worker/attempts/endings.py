"""The possible endings of a job's attempt, each with its fenced write."""

from dataclasses import dataclass, replace

import structlog

from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.kit.errors import JobProblem, run_deadline
from worker.attempt_machine.ending import Ending
from worker.outcomes import Outcome
from worker.subprocesses.messages import Error
from worker.subprocesses.problems import INSUFFICIENT_MEMORY, as_problem, internal_error

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobEndings:
    """The :class:`~worker.attempt_machine.ending.Endings` of a job's claim. ``max_run_seconds``: the job's limit."""

    leases: JobLeases
    claim: Claim
    max_run_seconds: int

    def succeeded(self, manifest: Manifest) -> Ending:
        """The ending of an attempt whose output is in the store: the job succeeds with ``manifest``."""
        return Ending(Outcome.SUCCEEDED, lambda: self._publish(manifest))

    def failed(self, problem: JobProblem) -> Ending:
        """``problem`` ends the job; after the first lack of memory, the job is queued again and runs with less."""
        return Ending(Outcome.FAILED, lambda: self._fail(problem), problem)

    def reported(self, error: Error) -> Ending:
        """The ending after a step reported ``error``."""
        return self.failed(as_problem(error))

    def overdue(self) -> Ending:
        """The ending of a job whose time is used up."""
        return self.failed(run_deadline(self.max_run_seconds))

    def cancelled(self) -> Ending:
        """The ending after a cancel: the job becomes cancelled."""
        return Ending.fenced(Outcome.CANCELLED, lambda: self.leases.cancelled(self.claim))

    def crashed(self) -> Ending:
        """The ending after a crash: the job is queued again, or fails if this was its last attempt."""
        return Ending.fenced(Outcome.CRASHED, lambda: self.leases.release(self.claim, "crash"))

    def drained(self) -> Ending:
        """The ending when this worker stops: the job is queued again, and the attempt does not count."""
        return Ending.fenced(Outcome.DRAINED, lambda: self.leases.release(self.claim, "drain"))

    def _publish(self, manifest: Manifest) -> Outcome:
        try:
            if self.leases.publish(self.claim, manifest):
                return Outcome.SUCCEEDED
        except ValueError:
            logger.exception("result_refused")
            problem = as_problem(internal_error("The run's result is not in the shape that was agreed."))
            return Outcome.FAILED if self.leases.fail(self.claim, problem) else Outcome.LOST
        # publish() changed no row: a cancel came first, or the claim is lost.
        return Outcome.CANCELLED if self.leases.cancelled(self.claim) else Outcome.LOST

    def _fail(self, problem: JobProblem) -> Outcome:
        if problem.code != INSUFFICIENT_MEMORY:
            return Outcome.FAILED if self.leases.fail(self.claim, problem) else Outcome.LOST
        if not self.claim.low_memory:
            return Outcome.STARVED if self.leases.release(self.claim, "low_memory") else Outcome.LOST
        # This attempt already ran with less memory; a third one would not help.
        again = replace(problem, detail=f"{problem.detail} It did so before, with larger batches.")
        return Outcome.FAILED if self.leases.fail(self.claim, again) else Outcome.LOST
