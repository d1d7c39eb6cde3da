"""The views of a job: frozen models that render exactly the JSON of the HTTP contract."""

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from jobs.job.documents import (
    CalibrationView,
    EvaluationView,
    JobStatusData,
    LogData,
    MetricData,
    Summary,
)
from jobs.kit.documents import JobProblemView
from jobs.kit.states import JobStatus, StageStatus
from jobs.kit.views import Described, Timestamp, View
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import Limits, Output, Policy


class ModelView(View):
    """The requested model."""

    source: Literal["hub", "local"]
    """The Hub, or the operator's models directory."""
    id: Annotated[str, Field(examples=["HuggingFaceTB/SmolLM2-135M"])]
    """Its id there."""
    revision: Annotated[str, Field(examples=["main"])]
    """The requested branch, tag or commit."""
    resolved_revision: Annotated[str | None, Field(examples=["0123456789abcdef0123456789abcdef01234567"])]
    """The commit that it was resolved to. Null for local models and before resolving."""


class EtaView(View):
    """Seconds that remain, as two quantiles of the estimate."""

    p50: Annotated[float, Field(examples=[126.0])]
    """As likely less as more."""
    p90: Annotated[float, Field(examples=[170.0])]
    """With nine chances in ten less."""


class ProgressView(View):
    """The progress of a job."""

    fraction: float = 0.0
    """Of the whole job, from 0 to 1."""
    stage: Annotated[str | None, Field(examples=["train"])] = None
    """The current stage."""
    unit: Annotated[str | None, Field(examples=["layer"])] = None
    """What ``done`` and ``total`` count."""
    done: Annotated[int | None, Field(examples=[13])] = None
    """The finished units of the current stage."""
    total: Annotated[int | None, Field(examples=[30])] = None
    """All units of the current stage."""
    eta_seconds: EtaView | None = None
    """The time that remains, while the job runs."""
    queue_position: Annotated[int | None, Field(examples=[1])] = None
    """1 for the job that is claimed next. An estimate: tenants take turns, so a later job may run earlier."""
    heartbeat_at: Timestamp | None = None
    """When the worker last reported."""


class ProgressData(View):
    """The progress as the worker reports it."""

    fraction: Annotated[float, Field(examples=[0.41])]
    """Of the whole job, from 0 to 1."""
    stage: Annotated[str | None, Field(examples=["train"])] = None
    """The current stage."""
    unit: Annotated[str | None, Field(examples=["layer"])] = None
    """What ``done`` and ``total`` count."""
    done: Annotated[int | None, Field(examples=[13])] = None
    """The finished units of the current stage."""
    total: Annotated[int | None, Field(examples=[30])] = None
    """All units of the current stage."""
    eta_seconds: EtaView | None = None
    """The time that remains."""


class StageView(View):
    """One stage of the run."""

    name: Annotated[str, Field(examples=["calibrate"])]
    """The stage."""
    status: StageStatus
    """Its state. ``reused``: an earlier attempt finished it."""
    seconds: Annotated[float | None, Field(examples=[12.1])] = None
    """How long it took. Null while it runs."""


class LinksView(View):
    """The paths of the other resources of a job."""

    self: Annotated[str, Field(examples=["/v1/jobs/job_01"])]
    """The job."""
    events: Annotated[str, Field(examples=["/v1/jobs/job_01/events"])]
    """Its event log."""
    layers: Annotated[str, Field(examples=["/v1/jobs/job_01/layers"])]
    """Its layer rows."""
    report: Annotated[str, Field(examples=["/v1/jobs/job_01/report"])]
    """Its report."""
    artifacts: Annotated[str, Field(examples=["/v1/jobs/job_01/artifacts"])]
    """Its files."""
    # Missing in answers that an older release stored for an Idempotency-Key.
    publications: Annotated[str, Field(examples=["/v1/jobs/job_01/publications"])] = ""
    """Its publications."""

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
    """A job. ``version`` is that of the row, for the ETag; it is not part of the JSON."""

    id: Annotated[str, Field(examples=["job_01"])]
    """Its id."""
    object: Literal["quantization.job"] = "quantization.job"
    """What this is."""
    status: JobStatus
    """Its state. What a running job does is in ``stages``."""
    is_terminal: bool
    """Whether it is over: only a retry changes it."""
    attempt: Annotated[int, Field(examples=[1])]
    """The number of its attempts, over its whole life."""
    # An older release may have stored an answer for an Idempotency-Key without the fields that have a default here.
    retries: int = 0
    """How often a user has queued it again."""
    low_memory: bool = False
    """Whether it ran out of memory and now runs with less."""
    created_at: Timestamp
    """When it was accepted."""
    started_at: Timestamp | None
    """When its first attempt began."""
    finished_at: Timestamp | None
    """When it ended."""
    expired_at: Timestamp | None = None
    """When retention removed its files."""
    model: ModelView
    """Its model."""
    policy: Annotated[dict[str, Any], Described(Policy)]
    """The whole policy: the preset with the request's fields in place of its own."""
    policy_hash: Annotated[str, Field(examples=["sha256:75346f8b19f31b97"])]
    """The digest of the policy without the preset's name."""
    calibration: Annotated[dict[str, Any], Described(CalibrationView)]
    """The text for calibration."""
    evaluation: Annotated[dict[str, Any], Described(EvaluationView)]
    """The measurements on the whole model."""
    output: Annotated[dict[str, Any], Described(Output)]
    """The kind of checkpoint, and where it is published."""
    limits: Annotated[dict[str, Any], Described(Limits)]
    """How long the job may wait and run."""
    metadata: Annotated[dict[str, str], Field(examples=[{"team": "search"}])]
    """The labels of the request."""
    progress: ProgressView
    """Its progress."""
    stages: tuple[StageView, ...]
    """The stages so far."""
    summary: Annotated[dict[str, Any], Described(Summary)] | None
    """Its results, once it has succeeded."""
    error: Annotated[dict[str, Any], Described(JobProblemView)] | None
    """Why it failed."""
    links: LinksView
    """Its other resources."""
    version: Annotated[int, Field(exclude=True)] = 0

    @property
    def etag(self) -> str:
        """A strong validator: the row's version and the queue position, which changes without the row."""
        position = self.progress.queue_position
        return f'"{self.version}"' if position is None else f'"{self.version}-{position}"'


class EventView(View):
    """One entry of a job's event log. The type of ``data`` follows from ``type``."""

    id: Annotated[int, Field(examples=[1])]
    """Counts from 1 in the job, without gaps. Old entries may have expired."""
    object: Literal["job.event"] = "job.event"
    """What this is."""
    type: Annotated[str, Field(examples=["progress"])]
    """What happened."""
    created_at: Timestamp
    """When it was written."""
    data: dict[str, Any]
    """More about it."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema of every type of event."""
        kinds = [handler(each.__pydantic_core_schema__) for each in TYPED_EVENTS]
        return {"title": "EventView", "description": str(cls.__doc__), "oneOf": kinds}


class LayerView(LayerRow):
    """One quantized linear: what was chosen for it, and the effect on its held-out error."""

    # A runner of another release may report columns that this one does not have.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ArtifactView(View):
    """One published file."""

    id: Annotated[str, Field(examples=["art_01"])]
    """Its id."""
    name: Annotated[str, Field(examples=["model.safetensors"])]
    """Its name, without a directory."""
    path: Annotated[str, Field(examples=["checkpoint/model.safetensors"])]
    """Its path relative to the job's output."""
    bytes: Annotated[int, Field(examples=[173000000])]
    """Its size."""
    sha256: Annotated[str, Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])]
    """Its digest, in hexadecimal."""
    media_type: Annotated[str, Field(examples=["application/octet-stream"])]
    """Its media type."""
    href: Annotated[str, Field(examples=["/v1/artifacts/art_01/content"])]
    """Where its bytes are."""


class _Event(View):
    id: Annotated[int, Field(examples=[1])]
    """Counts from 1 in the job, without gaps. Old entries may have expired."""
    object: Literal["job.event"] = "job.event"
    """What this is."""
    created_at: Timestamp
    """When it was written."""


class JobStatusEvent(_Event):
    """The job's status has changed."""

    type: Literal["job.status"]
    """What happened."""
    data: JobStatusData
    """The new status."""


class StageStatusEvent(_Event):
    """A stage has begun or ended."""

    type: Literal["stage.status"]
    """What happened."""
    data: StageView
    """The stage."""


class ProgressEvent(_Event):
    """The job has made progress."""

    type: Literal["progress"]
    """What happened."""
    data: ProgressData
    """The progress."""


class LayerCompletedEvent(_Event):
    """A linear has been measured."""

    type: Literal["layer.completed"]
    """What happened."""
    data: LayerView
    """Its row."""


class MetricEvent(_Event):
    """A number that a stage reports while it runs."""

    type: Literal["metric"]
    """What happened."""
    data: MetricData
    """The number."""


class LogEvent(_Event):
    """A line of the run's log."""

    type: Literal["log"]
    """What happened."""
    data: LogData
    """The line."""


class DoneEvent(_Event):
    """The job is over. A stream ends with it."""

    type: Literal["done"]
    """What happened."""
    data: JobStatusData
    """The final status."""


TYPED_EVENTS: Final[tuple[type[View], ...]] = (
    JobStatusEvent,
    StageStatusEvent,
    ProgressEvent,
    LayerCompletedEvent,
    MetricEvent,
    LogEvent,
    DoneEvent,
)
"""Every type of event, for the API's document."""
