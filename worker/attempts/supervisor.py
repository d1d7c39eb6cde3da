"""The supervisor: it claims jobs, and runs one attempt of each. It holds the claim; the runner computes."""

import time
from dataclasses import dataclass, field

import structlog
from pydantic import ValidationError

from jobs.job.lease import Claim
from jobs.job.nudge import Nudger
from quant_engine.interface.stages import stage_weights
from worker.attempt_machine.ending import Ending
from worker.attempts.attempt import Attempt, AttemptDependencies
from worker.attempts.progress import ProgressTracker
from worker.attempts.reporter import Reporter
from worker.attempts.workspace import open_workspace
from worker.claims.heartbeat import ClaimHeartbeat
from worker.claims.process_lock import hold_process_lock
from worker.outcomes import Outcome
from worker.subprocesses.problems import as_error, as_problem
from worker.telemetry.ports import AttemptTelemetry, Telemetry

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """The supervisor of one worker process. It runs one job at a time, in the caller's thread."""

    dependencies: AttemptDependencies
    owner: str
    nudger: Nudger
    telemetry: Telemetry = field(default_factory=Telemetry)

    def run_next(self) -> Outcome | None:
        """Claim the job whose turn it is and run one attempt of it; return None if there is none to claim.

        Raises:
            Unavailable: the database did not answer the claim.
        """
        # Read before the claim: the lease may have begun at any moment since.
        claimed_at = time.monotonic()
        claim = self.dependencies.leases.claim(self.owner)
        if claim is None:
            return None
        with structlog.contextvars.bound_contextvars(**_ids(claim)), self.telemetry.attempt(claim) as telemetry:
            logger.info("job_claimed", owner=self.owner)
            outcome = self._run(claim, claimed_at, telemetry)
            telemetry.ended(outcome)
            logger.info("attempt_ended", outcome=outcome)
        if outcome is Outcome.DRAINED:
            # For another worker. After a crash, this worker's loop or a sweep starts the next attempt.
            self.nudger.nudge()
        return outcome

    def _run(self, claim: Claim, claimed_at: float, telemetry: AttemptTelemetry) -> Outcome:
        settings = self.dependencies.settings
        with (
            ClaimHeartbeat.of(self.dependencies.leases, claim, settings, claimed_at=claimed_at) as heartbeat,
            hold_process_lock(settings.work_dir, claim.job_id, claim.fence),
        ):
            try:
                attempt = self._open(claim, heartbeat, telemetry)
            except (OSError, ValidationError) as error:
                logger.exception("workspace_not_opened")
                problem = as_problem(as_error(error))
                # There is no workspace to settle with, so the failure is written directly.
                unopened = Ending.fenced(Outcome.FAILED, lambda: self.dependencies.leases.fail(claim, problem))
                return unopened.settle(heartbeat)
            return attempt.settle(attempt.run())

    def _open(self, claim: Claim, heartbeat: ClaimHeartbeat, telemetry: AttemptTelemetry) -> Attempt:
        settings, request = self.dependencies.settings, claim.request
        weights = stage_weights(request.policy, request.calibration, request.evaluation, request.output)
        tracker = ProgressTracker(weights)
        return Attempt(
            dependencies=self.dependencies,
            claim=claim,
            request=request,
            heartbeat=heartbeat,
            reporter=Reporter(self.dependencies.leases, claim, heartbeat, tracker, telemetry=telemetry),
            workspace=open_workspace(settings.work_dir, claim.job_id, claim.fence),
        )


def _ids(claim: Claim) -> dict[str, object]:
    """Return the ids that every log line of the attempt carries."""
    ids: dict[str, object] = {"job_id": claim.job_id, "attempt": claim.attempt, "fence": claim.fence}
    return ids if claim.request_id is None else {**ids, "request_id": claim.request_id}
