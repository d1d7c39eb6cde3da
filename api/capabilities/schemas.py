"""What this installation can do, as ``/v1/capabilities`` shows it."""

from typing import Annotated, Literal

from pydantic import Field

from jobs.job.overview import WorkerView
from jobs.kit.views import View


class DatasetCapability(View):
    """A dataset name for requests."""

    name: Annotated[str, Field(examples=["pydoc"])]
    """Its name, for requests."""
    source: Literal["built_in", "operator", "model", "hub"]
    """A part of the service, the operator's directory, the model itself, or the Hub, from which the worker fetches
    it."""
    uses: Annotated[tuple[Literal["calibration", "evaluation"], ...], Field(examples=[("calibration",)])]
    """What it can be used for."""
    default: bool
    """Whether there is a use in which a request without a name gets it."""
    default_for: Annotated[tuple[Literal["calibration", "evaluation"], ...], Field(examples=[("calibration",)])]
    """The uses in which a request without a name gets it."""


class QuantizationCapability(View):
    """The values that fields of ``policy.weights`` or ``policy.activations`` accept."""

    formats: Annotated[tuple[str, ...], Field(examples=[("int4",)])]
    """The number formats."""
    granularities: Annotated[tuple[str, ...], Field(examples=[("channel",)])]
    """The values that share a scale."""


class TransformCapability(View):
    """The values that fields of ``policy.transform`` accept."""

    kinds: Annotated[tuple[str, ...], Field(examples=[("smooth_rotation",)])]
    """The transforms."""
    statistics: Annotated[tuple[str, ...], Field(examples=[("l2",)])]
    """The channel statistics."""


class LimitsCapability(View):
    """The limits of this installation, in bytes, counts and seconds."""

    max_body_bytes: Annotated[int, Field(examples=[10000000])]
    """The largest body of a request."""
    max_attempts: Annotated[int, Field(examples=[3])]
    """The attempts of a job."""
    max_page_entries: Annotated[int, Field(examples=[100])]
    """The most entries of a page."""
    idempotency_key_seconds: Annotated[int, Field(examples=[86400])]
    """How long an Idempotency-Key is kept."""


class Capabilities(View):
    """The body of the response."""

    object: Literal["capabilities"] = "capabilities"
    """What this is."""
    architectures: Annotated[tuple[str, ...], Field(examples=[("LlamaForCausalLM",)])]
    """The classes of models in transformers."""
    weights: QuantizationCapability
    """How weights can be rounded."""
    activations: QuantizationCapability
    """How inputs can be rounded."""
    transforms: TransformCapability
    """The transforms."""
    profiles: Annotated[tuple[str, ...], Field(examples=[("universal",)])]
    """The kinds of checkpoints."""
    also: Annotated[tuple[str, ...], Field(examples=[("gguf-source",)])]
    """What a job can write besides its checkpoint (``output.also``)."""
    datasets: tuple[DatasetCapability, ...]
    """The datasets."""
    local_models: Annotated[tuple[str, ...], Field(examples=[("smollm2-135m",)])]
    """The directories in the operator's models directory."""
    workers: tuple[WorkerView, ...]
    """The workers that reported recently."""
    devices: Annotated[tuple[str, ...], Field(examples=[("cpu",)])]
    """Their devices."""
    limits: LimitsCapability
    """The limits of this installation."""
