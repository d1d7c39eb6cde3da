"""Converting rows to views, and reported layer rows to values that can be stored."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from jobs.job.views import (
    ArtifactView,
    EventView,
    JobView,
    LayerView,
    LinksView,
    ModelView,
    ProgressView,
    StageView,
)
from jobs.kit.states import JobStatus
from jobs.kit.storable import storable_json
from jobs.repository.models import Artifact, Job, JobEvent, JobLayer

LAYER_NUMBERS = tuple(
    name for name, field in LayerView.model_fields.items() if field.annotation in (int, float, float | None)
)
"""The columns that layers can be sorted by."""


def layer_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a reported row to column values: unknown columns are dropped, non-finite numbers become null.

    Raises:
        pydantic.ValidationError: a column is missing. Only columns about the choice may be left out.
    """
    left_out = {"alpha": None, "statistic": None, "selected": None}
    return LayerView.model_validate(storable_json({**left_out, **row})).model_dump()


def job_view(job: Job, queue_position: int | None = None) -> JobView:
    """Return the view of a job."""
    status = JobStatus(job.status)
    return JobView(
        id=job.id,
        status=status,
        is_terminal=status.is_terminal,
        attempt=job.attempt,
        retries=job.retries,
        low_memory=job.low_memory,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expired_at=job.expired_at,
        model=ModelView.model_validate(
            {
                "source": job.model_source,
                "id": job.model_id,
                "revision": job.model_revision,
                "resolved_revision": job.resolved_revision,
            }
        ),
        policy=job.policy,
        policy_hash=job.policy_hash,
        **job.options,
        metadata=job.labels,
        progress=_progress(job, status, queue_position),
        stages=tuple(StageView.model_validate(stage) for stage in job.stages),
        summary=job.summary,
        error=job.error,
        links=LinksView.of(job.id),
        version=job.version,
    )


def _progress(job: Job, status: JobStatus, queue_position: int | None) -> ProgressView:
    shown: dict[str, Any] = {**job.progress, "queue_position": queue_position, "heartbeat_at": job.heartbeat_at}
    # The last report of a run may be below 1, and an estimate is only true while the job runs.
    if status is JobStatus.SUCCEEDED:
        shown["fraction"] = 1.0
    if status is not JobStatus.RUNNING:
        shown["eta_seconds"] = None
    return ProgressView.model_validate(shown)


def event_view(event: JobEvent) -> EventView:
    """Return the view of one log entry."""
    return EventView(id=event.id, type=event.type, created_at=event.created_at, data=event.data)


def layer_view(layer: JobLayer) -> LayerView:
    """Return the view of one layer row."""
    return LayerView.model_validate(layer, from_attributes=True)


def artifact_view(artifact: Artifact) -> ArtifactView:
    """Return the view of one artifact."""
    return ArtifactView(
        id=artifact.id,
        name=artifact.path.rsplit("/", 1)[-1],
        path=artifact.path,
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        media_type=artifact.media_type,
        href=f"/v1/artifacts/{artifact.id}/content",
    )


def shown_options(spec: BaseModel) -> dict[str, Any]:
    """Return the parts of a request that a job shows beside model and policy; what is inline is only counted."""
    options: dict[str, Any] = spec.model_dump(mode="json", include={"calibration", "evaluation", "output", "limits"})
    # Inline texts can be megabytes, and a list of jobs would repeat them.
    for holder in (options["calibration"], options["evaluation"]["perplexity"]):
        dataset: Any = None if holder is None else holder["dataset"]
        for form in ("texts", "messages") if isinstance(dataset, dict) else ():
            if form in dataset:
                holder["dataset"] = {f"inline_{form}": len(dataset[form])}
    return options
