"""The answers of the service, as frozen types. Fields that a newer service adds are kept."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from quant_engine.interface.layers import UNMEASURED, LayerRow

Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]


class Result(BaseModel):
    """The base of all results: immutable, with unknown fields allowed."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Eta(Result):
    """The estimate of the time left in seconds, as two quantiles."""

    p50: float
    p90: float


class Progress(Result):
    """A job's progress. ``done`` and ``total`` count units of the stage; ``queue_position`` 1 is the next job."""

    fraction: float = 0.0
    stage: str | None = None
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    eta_seconds: Eta | None = None
    queue_position: int | None = None


class Stage(Result):
    """One stage of a run."""

    name: str
    status: str
    seconds: float | None = None


class Job(Result):
    """A job, as the service returns it."""

    id: str
    status: Status
    is_terminal: bool
    attempt: int
    retries: int = 0
    low_memory: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expired_at: datetime | None = None
    model: dict[str, Any]
    policy: dict[str, Any]
    policy_hash: str
    progress: Progress
    stages: tuple[Stage, ...] = ()
    summary: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class Credential(Result):
    """A stored Hub token. The token itself is never returned."""

    id: str
    name: str
    kind: str
    created_at: datetime
    last_used_at: datetime | None = None


class Event(Result):
    """One entry of a job's event log; ``id`` is a number that grows within the job."""

    id: int
    type: str
    data: dict[str, Any]


class Layer(LayerRow):
    """One quantized linear: its chosen settings, and its held-out error with those of the baselines.

    Columns that a newer service adds are kept. Columns that another release does not send are None.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    # An older service may not send these, and a newer one may send other groups.
    parameters: int | None = None  # type: ignore[assignment]  # wider than what the engine reports
    bytes: int | None = None  # type: ignore[assignment]
    selected: str | None = None  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, row: object) -> object:
        return {**UNMEASURED, **row} if isinstance(row, dict) else row


class Artifact(Result):
    """One published file. ``path`` is relative to the job's output; ``sha256`` is hexadecimal."""

    id: str
    name: str
    path: str
    bytes: int
    sha256: str
    media_type: str
    href: str


class BytesProgress(Result):
    """How many bytes of a checkpoint the Hub has."""

    bytes_done: int
    bytes_total: int


class HubCommit(Result):
    """The commit on the Hub that holds a checkpoint."""

    sha: str
    url: str


class Publication(Result):
    """A push of a job's checkpoint to the Hub. ``last_error``: why another attempt follows the latest one."""

    id: str
    job_id: str
    status: Literal["queued", "running", "succeeded", "failed"]
    is_terminal: bool
    repo: str
    private: bool
    revision: str
    attempt: int
    progress: BytesProgress
    commit: HubCommit | None = None
    error: dict[str, Any] | None = None
    last_error: dict[str, Any] | None = None
