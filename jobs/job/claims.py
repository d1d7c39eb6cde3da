"""The types between a worker and the database: a claim, and the reports and results of an attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jobs.artifacts import ManifestEntry
from jobs.kit.storable import storable_json
from quant_engine.policy import JobRequest


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run one attempt of one job. ``spec`` is the fully resolved JobRequest as JSON.

    ``resolved_revision``: the commit that an earlier attempt found for the model's revision. ``request_id`` and
    ``traceparent``: those of the request that queued the job. ``low_memory``: an attempt ran out of memory.
    ``retry_from``: the stage that a retry asked to begin with, until that is done. ``run_seconds_left``: the part of
    the job's time that earlier attempts did not use.
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
    waited_seconds: float = 0.0  # since the job could have been claimed
    low_memory: bool = False
    retry_from: str | None = None
    run_seconds_left: float | None = None

    @property
    def request(self) -> JobRequest:
        """The specification as a JobRequest. Raises: pydantic.ValidationError."""
        return JobRequest.model_validate(self.spec)


@dataclass(frozen=True, kw_only=True)
class ProgressReport:
    """A progress report. ``fraction`` in [0, 1] is of the whole job; the eta values are in seconds."""

    fraction: float
    stage: str
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    eta_p50: float | None = None
    eta_p90: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the members of a job's ``progress`` that a worker reports."""
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
    """Everything that a finished run publishes at once. ``artifacts``: from ``ArtifactStore.put``."""

    summary: Mapping[str, Any]
    report: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]
    artifacts: Sequence[ManifestEntry]


ReleaseReason = Literal["crash", "drain", "low_memory"]
"""Why an attempt ends but its job does not: it crashed, its worker stops, or it ran out of memory."""
