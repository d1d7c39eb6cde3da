"""The specification and the result of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from quant_engine.interface.datasets import Purpose
from quant_engine.policy import BUILT_IN, Calibration, Evaluation, Output, Policy


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of the pipeline.

    Attributes:
        model_dir: a safetensors checkpoint with its tokenizer: dense, unless the policy's task is to evaluate.
        policy: fully resolved (:func:`quant_engine.policy.resolve_policy`).
        datasets_dir: where named data sets are; with None only the built-in ones are available.
        default_dataset: used where the request names none.
        fetched: for a purpose whose data set is on the Hub, the directory with its files; the engine has no network.
        device: where tensors are computed, as torch names it.
        model_id: the name of the model for people; None for the directory's name.
        revision: the Hub commit of ``model_dir``; None for a model that is not from the Hub.
        low_memory: work in smaller batches, and more slowly, wherever memory depends on the batch. Windows go through a
            block one at a time, hidden states are in the memory of the CPU, a block in training holds one sample's
            activations, and rotations are learned window by window. Sums are over the same groups, except for those
            rotations. Still, a row of a smaller product may round differently, so the same bits are not promised.
            No stage's digest covers it: a run that ran out of memory may continue with it.
        link_dirs: directories outside of ``model_dir`` into which its links may lead; by default no link may leave it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # where a run is read from JSON

    model_dir: Path
    policy: Policy
    calibration: Calibration
    evaluation: Evaluation
    output: Output
    datasets_dir: Path | None = None
    default_dataset: str = BUILT_IN
    fetched: Mapping[Purpose, Path] = field(default_factory=dict)
    device: str = "cpu"
    model_id: str | None = None
    revision: str | None = None
    low_memory: bool = False
    link_dirs: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The JSON files of a run's output directory, and where its checkpoint is.

    Attributes:
        layers: each a :class:`quant_engine.interface.layers.LayerRow`, in forward order.
        checkpoint_dir: None where no checkpoint is written.
    """

    summary: dict[str, Any]
    report: dict[str, Any]
    layers: list[dict[str, Any]]
    checkpoint_dir: Path | None
