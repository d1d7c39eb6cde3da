"""Leases that also count claims, heartbeats and sweeps for the metrics."""

from collections.abc import Collection

from jobs.job.lease import Claim, JobLeases, Swept
from jobs.kit.errors import Unavailable
from jobs.kit.leases import ClaimKey, HeartbeatResult
from jobs.repository.database import Database
from jobs.settings import Settings
from worker.telemetry.measurements import ClaimLost, HeartbeatMissed, JobClaimed, Measure, SweepDone


class MeasuredJobLeases(JobLeases):
    """A :class:`JobLeases` that measures its claims, heartbeats and sweeps."""

    def __init__(self, database: Database, settings: Settings, measure: Measure) -> None:
        super().__init__(database, settings)
        self._measure = measure

    def claim(self, owner: str) -> Claim | None:
        """Take a job, as :meth:`JobLeases.claim` does."""
        claim = super().claim(owner)
        if claim is not None:
            self._measure(JobClaimed(claim.waited_seconds))
        return claim

    def heartbeat(self, claim: Claim) -> HeartbeatResult:
        """Renew the lease, as :meth:`JobLeases.heartbeat` does."""
        try:
            beat = super().heartbeat(claim)
        except Unavailable:
            self._measure(HeartbeatMissed())
            raise
        if not beat.ok:
            self._measure(ClaimLost())
        return beat

    def sweep(self, orphans: Collection[ClaimKey] = ()) -> Swept:
        """Repair what dead workers left, as :meth:`JobLeases.sweep` does."""
        swept = super().sweep(orphans)
        self._measure(SweepDone(swept))
        return swept
