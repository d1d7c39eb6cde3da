"""Runs over tiny models without the pipeline: a run's context, plausible plans, a recording observer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_order
from quant_engine.interface.layers import LayerRow
from quant_engine.interface.spec import RunSpec
from quant_engine.models import Site, StreamedModel
from quant_engine.policy import Calibration, Evaluation, Output, Perplexity, Policy, TransformKind
from quant_engine.stages.context.run import Run, prepare_run
from quant_engine.transforms import SitePlan
from quant_engine.transforms.primitives import Hadamard

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class RecordingObserver:
    """Remembers everything it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def stage_started(self, name: str, unit: str, total: int) -> None:
        self.events.append(("started", name, unit, total))

    def stage_advanced(self, name: str, done: int, total: int) -> None:
        self.events.append(("advanced", name, done, total))

    def stage_finished(self, name: str, seconds: float, reused: bool) -> None:
        assert seconds >= 0.0
        self.events.append(("finished", name, reused))

    def layer_completed(self, row: LayerRow) -> None:
        self.events.append(("layer", row.model_dump()))

    def metric(self, name: str, value: float) -> None:
        self.events.append(("metric", name, value))

    def log(self, message: str) -> None:
        self.events.append(("log", message))


def run_spec(model_dir: Path, policy: Policy, **fields: Any) -> RunSpec:
    """A small specification on the built-in text."""
    defaults: dict[str, Any] = {
        "calibration": Calibration(samples=16, sequence_length=32),
        "evaluation": Evaluation(perplexity=Perplexity(tokens=256, sequence_length=64)),
        "output": Output(),
    }
    return RunSpec(model_dir=model_dir, policy=policy, **(defaults | fields))


def open_run(model_dir: Path, policy: Policy, work_dir: Path) -> Run:
    """A run's context."""
    return prepare_run(run_spec(model_dir, policy), work_dir=work_dir, observer=RecordingObserver())


def random_plan(site: Site, kind: TransformKind) -> SitePlan:
    """A plan of ``kind`` whose scales spread over two orders of magnitude, tied where the site ties them.

    Where a rotation follows, the channels inside the feed-forward are permuted.
    """
    scales_D = None
    if kind.scales_channels:
        generator = torch.Generator().manual_seed(len(site.name) + site.block)
        index_D = site.tie_index()
        scales_D = torch.exp(torch.randn(int(index_D.max()) + 1, generator=generator))[index_D]
    online = (Hadamard(order=hadamard_order(site.features)),) if kind.rotates else ()
    permutation_D = None
    if online and site.role == "feed_forward_inner":
        permutation_D = torch.randperm(site.features, generator=torch.Generator().manual_seed(site.block))
    return SitePlan(kind=kind, label="absmax", scales_D=scales_D, permutation_D=permutation_D, online=online)


def random_plans(run: Run, kind: TransformKind = TransformKind.SMOOTH_ROTATION) -> dict[str, SitePlan]:
    """A plan for every site of a run."""
    return {site.name: random_plan(site, kind) for site in run.sites}


def streamed_logits(model: StreamedModel, input_ids_BT: Tensor, read: Any = None, prepare: Any = None) -> Tensor:
    """The logits of a streamed forward."""
    entered = model.enter(input_ids_BT)
    hidden = entered.hidden_BTD
    with torch.no_grad():
        for index in range(model.blocks):
            with model.block(index, read, prepare) as block:
                hidden = block(hidden, **entered.layer_arguments[index])
    return model.leave(hidden)


def fixed_ids(batch: int = 2, length: int = 48, vocabulary: int = 512) -> Tensor:
    """Token ids that are always the same."""
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def by_name(run: Run) -> Mapping[str, Site]:
    """A run's sites."""
    return {site.name: site for site in run.sites}
