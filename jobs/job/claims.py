"""What a worker holds and what it tells: a claim, its heartbeats, its reports and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.artifacts import ManifestEntry
from jobs.kit.storable import storable_json
from quant_engine.policy import JobRequest


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run one attempt of one job. ``spec`` is the fully resolved JobRequest as JSON.

    ``resolved_revision`` is the commit that an earlier attempt found the model's revision to mean; ``request_id`` and
    ``traceparent`` are those of the request that queued the job. ``low_memory``: an attempt ran out of memory;
    ``retry_from``: the stage that a retry asked to begin with, until that is done; ``run_seconds_left``: what earlier
    attempts left of the job's time.
    """

    job_id: str
    fence: int
    attempt: int
    max_attempts: int
    tenant: str
    owner: str
    spec: dict[str, Any]
    resolved_revision: str | None = None
    request_id: str | None = None
    traceparent: str | None = None
    waited_seconds: float = 0.0  # since it could have been claimed
    low_memory: bool = False
    retry_from: str | None = None
    run_seconds_left: float | None = None

    @property
    def request(self) -> JobRequest:
        """The specification as types. Raises: pydantic.ValidationError."""
        return JobRequest.model_validate(self.spec)


@dataclass(frozen=True, kw_only=True)
class ProgressReport:
    """One progress report. ``fraction`` in [0, 1] is of the whole job; eta in seconds."""

    fraction: float
    stage: str
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    eta_p50: float | None = None
    eta_p90: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The members of a job's ``progress`` that a worker reports."""
        eta = None if self.eta_p50 is None or self.eta_p90 is None else {"p50": self.eta_p50, "p90": self.eta_p90}
        cleaned: dict[str, Any] = storable_json(
            {
                "fraction": min(max(self.fraction, 0.0), 1.0),
                "stage": self.stage,
                "unit": self.unit,
                "done": self.done,
                "total": self.total,
                "eta_seconds": eta,
            }
        )
        return cleaned


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a finished run publishes, at once. ``artifacts``: from ``ArtifactStore.put``."""

    summary: Mapping[str, Any]
    report: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]
    artifacts: Sequence[ManifestEntry]


ReleaseReason = Literal["crash", "drain", "low_memory"]
"""Why an attempt ends without an end of its job: it died, its worker stops, or it needs more memory than there is."""
