"""The views of a job: frozen models that render exactly the JSON of the HTTP contract."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from jobs.kit.states import JobStatus, StageStatus
from jobs.kit.views import Timestamp, View
from quant_engine.interface.layers import LayerRow


class ModelView(View):
    """The requested model, and the commit it was resolved to (null for local models and before resolving)."""

    source: Literal["hub", "local"]
    id: str
    revision: str
    resolved_revision: str | None


class EtaView(View):
    """Seconds that remain, as two quantiles of the estimate."""

    p50: float
    p90: float


class ProgressView(View):
    """The progress of a job. ``fraction`` is of the whole job; ``done``/``total`` count ``unit`` in the current stage.

    ``queue_position`` is 1 for the job that is claimed next. It is an estimate: tenants take turns, so a job that is
    submitted later may run earlier.
    """

    fraction: float = 0.0
    stage: str | None = None
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    eta_seconds: EtaView | None = None
    queue_position: int | None = None
    heartbeat_at: Timestamp | None = None


class StageView(View):
    """One stage of the run. ``seconds`` is null while it runs."""

    name: str
    status: StageStatus
    seconds: float | None = None


class LinksView(View):
    """The paths of the other resources of a job."""

    self: str
    events: str
    layers: str
    report: str
    artifacts: str
    publications: str = ""  # missing in answers that an older release stored for an Idempotency-Key

    @classmethod
    def of(cls, job_id: str) -> "LinksView":
        """Return the links of one job, as paths of this server."""
        base = f"/v1/jobs/{job_id}"
        return cls(
            self=base,
            events=f"{base}/events",
            layers=f"{base}/layers",
            report=f"{base}/report",
            artifacts=f"{base}/artifacts",
            publications=f"{base}/publications",
        )


class JobView(View):
    """A job. ``version`` is that of the row, for the ETag; it is not part of the JSON.

    ``attempt`` and ``retries`` count over its whole life. ``low_memory``: it ran out of memory and now runs with less.
    """

    id: str
    object: Literal["quantization.job"] = "quantization.job"
    status: JobStatus
    is_terminal: bool
    attempt: int
    # An older release may have stored an answer for an Idempotency-Key without the fields that have a default here.
    retries: int = 0
    low_memory: bool = False
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    expired_at: Timestamp | None = None  # when retention removed its files
    model: ModelView
    policy: dict[str, Any]
    policy_hash: str
    calibration: dict[str, Any]
    evaluation: dict[str, Any]
    output: dict[str, Any]
    limits: dict[str, Any]
    metadata: dict[str, str]
    progress: ProgressView
    stages: tuple[StageView, ...]
    summary: dict[str, Any] | None
    error: dict[str, Any] | None
    links: LinksView
    version: Annotated[int, Field(exclude=True)] = 0

    @property
    def etag(self) -> str:
        """A strong validator: the row's version and the queue position, which changes without the row."""
        position = self.progress.queue_position
        return f'"{self.version}"' if position is None else f'"{self.version}-{position}"'


class EventView(View):
    """One entry of a job's event log. ``id`` counts from 1 in the job, without gaps; old entries may have expired."""

    id: int
    object: Literal["job.event"] = "job.event"
    type: str
    created_at: Timestamp
    data: dict[str, Any]


class LayerView(LayerRow):
    """One quantized linear: what was chosen for it, and the effect on its held-out error."""

    # A runner of another release may report columns that this one does not have.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ArtifactView(View):
    """One published file. ``sha256`` is hexadecimal; ``path`` is relative to the job's output."""

    id: str
    name: str
    path: str
    bytes: int
    sha256: str
    media_type: str
    href: str
