"""What a run is asked to do, and what it hands back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from quant_engine.policy import BUILT_IN, Calibration, Evaluation, Output, Policy


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of the pipeline.

    Attributes:
        model_dir: a safetensors checkpoint with its tokenizer: dense, unless the policy's task is to evaluate.
        policy: fully resolved (:func:`quant_engine.policy.resolve_policy`).
        datasets_dir: where named data sets are; None leaves the built-in ones.
        default_dataset: used where the request names none.
        device: where tensors are computed, as torch names it.
        model_id: what people call the model; the directory's name where it is None.
        revision: the Hub commit that ``model_dir`` is; None for a model that is not the Hub's.
        low_memory: work in smaller batches wherever memory is a matter of the batch, more slowly. Windows go through a
            block one at a time, hidden states lie in the memory of the CPU, a block in training keeps one sample's
            activations, rotations are learned window by window. What is summed is summed in the same groups, but for
            those rotations; still, a row of a smaller product may round otherwise, and the same bits are not promised.
            No stage's digest covers it: a run may go on with it where it ran out of memory without it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # where a run is read from JSON

    model_dir: Path
    policy: Policy
    calibration: Calibration
    evaluation: Evaluation
    output: Output
    datasets_dir: Path | None = None
    default_dataset: str = BUILT_IN
    device: str = "cpu"
    model_id: str | None = None
    revision: str | None = None
    low_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves in its output directory, as JSON, and where the checkpoint is; None where none is written.

    Attributes:
        layers: each a :class:`quant_engine.interface.layers.LayerRow`, in forward order.
    """

    summary: dict[str, Any]
    report: dict[str, Any]
    layers: list[dict[str, Any]]
    checkpoint_dir: Path | None
