"""What this installation can do, as ``/v1/capabilities`` shows it."""

from typing import Literal

from jobs.job.overview import WorkerView
from jobs.kit.views import View


class DatasetCapability(View):
    """A dataset name for requests.

    ``source``: a part of the service, the operator's directory, the model itself, or the Hub, from which the worker
    fetches it. ``default_for``: the uses in which a request without a name gets it; ``default``: whether there are any.
    """

    name: str
    source: Literal["built_in", "operator", "model", "hub"]
    uses: tuple[Literal["calibration", "evaluation"], ...]
    default: bool
    default_for: tuple[Literal["calibration", "evaluation"], ...]


class QuantizationCapability(View):
    """The values that fields of ``policy.weights`` or ``policy.activations`` accept."""

    formats: tuple[str, ...]
    granularities: tuple[str, ...]


class TransformCapability(View):
    """The values that fields of ``policy.transform`` accept."""

    kinds: tuple[str, ...]
    statistics: tuple[str, ...]


class LimitsCapability(View):
    """The limits of this installation, in bytes, counts and seconds."""

    max_body_bytes: int
    max_attempts: int
    max_page_entries: int
    idempotency_key_seconds: int


class Capabilities(View):
    """The body of the response."""

    object: Literal["capabilities"] = "capabilities"
    architectures: tuple[str, ...]
    weights: QuantizationCapability
    activations: QuantizationCapability
    transforms: TransformCapability
    profiles: tuple[str, ...]
    datasets: tuple[DatasetCapability, ...]
    local_models: tuple[str, ...]
    workers: tuple[WorkerView, ...]
    devices: tuple[str, ...]
    limits: LimitsCapability
