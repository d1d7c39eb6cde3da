"""The worker's side of a job's life: claim, heartbeat, fenced writes, publish, release, sweep.

Every write has the claim's fence in its WHERE; a write that changes no row returns False, and the caller must then
stop its runner: another worker, a cancel or a sweep has taken the job. All times are the database's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.artifacts import ManifestEntry
from jobs.database import Database
from jobs.errors import JobProblem
from jobs.settings import Settings
from jobs.states import StageStatus
from quant_engine.policy import JobRequest


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run one attempt of one job. ``spec`` is the fully resolved JobRequest as JSON."""

    job_id: str
    fence: int
    attempt: int
    max_attempts: int
    tenant: str
    owner: str
    spec: dict[str, Any]

    @property
    def request(self) -> JobRequest:
        """The specification as types. Raises: pydantic.ValidationError."""
        return JobRequest.model_validate(self.spec)


@dataclass(frozen=True)
class Beat:
    """What a heartbeat learnt. ``ok`` false: the claim is lost, kill the runner and write nothing more."""

    ok: bool
    cancel_requested: bool = False
    deadline_exceeded: bool = False


@dataclass(frozen=True)
class Swept:
    """What a sweep did; ``nudges``: how many queued rows deserve a nudge now (at most 8)."""

    requeued: int = 0
    failed: int = 0
    cancelled: int = 0
    nudges: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One progress report. ``fraction`` in [0, 1] is of the whole job; eta in seconds."""

    fraction: float
    stage: str
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    eta_p50: float | None = None
    eta_p90: float | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a finished run publishes, at once. ``artifacts``: from ``ArtifactStore.adopt``."""

    summary: Mapping[str, Any]
    report: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]
    artifacts: Sequence[ManifestEntry]


ReleaseReason = Literal["crash", "drain"]


class LeaseKeeper:
    """Claims jobs for workers and writes what they learn. One instance per process; methods are transactions."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def claim(self, owner: str) -> Claim | None:
        """Take the oldest claimable job (FOR UPDATE SKIP LOCKED): fence + 1, attempt + 1, a fresh lease."""
        raise NotImplementedError

    def heartbeat(self, claim: Claim) -> Beat:
        """Renew the lease."""
        raise NotImplementedError

    def record_resolved_revision(self, claim: Claim, revision: str) -> bool:
        """The commit sha that the model's revision meant."""
        raise NotImplementedError

    def record_progress(self, claim: Claim, progress: Progress) -> bool:
        """Store the report and append a ``progress`` event. The caller limits the rate."""
        raise NotImplementedError

    def record_stage(self, claim: Claim, name: str, status: StageStatus, seconds: float | None = None) -> bool:
        """Set one stage's line (appended in order of first mention) and append a ``stage.status`` event."""
        raise NotImplementedError

    def record_layers(self, claim: Claim, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Insert or replace layer rows by name and append one ``layer.completed`` event each."""
        raise NotImplementedError

    def append_event(self, claim: Claim, event_type: str, data: Mapping[str, Any]) -> bool:
        """Append a ``metric`` or ``log`` event."""
        raise NotImplementedError

    def publish(self, claim: Claim, manifest: Manifest) -> bool:
        """Make the job succeeded, with all it produced, in one fenced UPDATE. False: lost, or a cancel came first."""
        raise NotImplementedError

    def fail(self, claim: Claim, problem: JobProblem) -> bool:
        """End the job as failed (as cancelled, if a cancel came first)."""
        raise NotImplementedError

    def release(self, claim: Claim, reason: ReleaseReason) -> bool:
        """Give the job back: queued again, or failed ``crash_loop`` when a crash used the last attempt up.

        A ``drain`` does not count the attempt. A job that was cancelling becomes cancelled.
        """
        raise NotImplementedError

    def cancelled(self, claim: Claim) -> bool:
        """The runner is gone: a cancelling job becomes cancelled."""
        raise NotImplementedError

    def sweep(self) -> Swept:
        """Repair what workers left behind: expired leases, deadlines, queued rows without a nudge."""
        raise NotImplementedError

    def beat_worker(self, owner: str, *, hostname: str, pid: int, device: str) -> None:
        """Say that this worker is alive."""
        raise NotImplementedError
