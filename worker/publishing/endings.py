"""The possible endings of a publication's attempt, each with its fenced write."""

from dataclasses import dataclass
from typing import Any

from jobs.kit.attempt_limit import is_last_attempt
from jobs.kit.errors import JobProblem
from jobs.publications.lease import Commit, PublicationClaim, PublicationLeases
from jobs.publications.problems import crashed
from worker.attempt_machine.ending import Ending
from worker.outcomes import Outcome
from worker.subprocesses.messages import Error
from worker.subprocesses.problems import as_problem


@dataclass(frozen=True, kw_only=True)
class PublicationEndings:
    """The :class:`~worker.attempt_machine.ending.Endings` of a publication's claim."""

    leases: PublicationLeases
    claim: PublicationClaim

    def succeeded(self, payload: dict[str, Any]) -> Ending:
        """The ending after the upload reported a commit; ``payload`` has ``sha``, ``url`` and ``created_repo``."""
        commit = Commit(str(payload["sha"]), str(payload["url"]), created_repo=bool(payload["created_repo"]))
        return Ending.fenced(Outcome.SUCCEEDED, lambda: self.leases.succeed(self.claim, commit))

    def failed(self, error: Error) -> Ending:
        """The ending when ``error`` fails the publication, because another attempt would not help."""
        problem = as_problem(error)
        return Ending.fenced(Outcome.FAILED, lambda: self.leases.fail(self.claim, problem), problem)

    def postponed(self, error: Error, retry_after: float) -> Ending:
        """The ending before another attempt, after at least ``retry_after`` seconds; the last attempt fails instead."""
        return self._retried(Outcome.POSTPONED, as_problem(error), retry_after)

    def reported(self, error: Error) -> Ending:
        """The ending after the upload reported ``error``; with ``retry_after``, another attempt follows."""
        return self.failed(error) if error.retry_after is None else self.postponed(error, error.retry_after)

    def crashed(self) -> Ending:
        """The ending after the upload crashed: another attempt follows; the last attempt fails the publication."""
        return self._retried(Outcome.CRASHED, crashed(self.claim.attempt), 0.0)

    def drained(self) -> Ending:
        """The ending when this worker stops: the publication is queued again, and the attempt does not count."""
        return Ending.fenced(Outcome.DRAINED, lambda: self.leases.release(self.claim))

    def _retried(self, outcome: Outcome, problem: JobProblem, retry_after: float) -> Ending:
        last = is_last_attempt(self.claim)
        return Ending.fenced(
            Outcome.FAILED if last else outcome,
            lambda: self.leases.postpone(self.claim, problem, retry_after=retry_after),
            problem,
        )
