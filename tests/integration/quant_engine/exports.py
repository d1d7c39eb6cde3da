"""Exporting a run under given plans, for the tests of checkpoints."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quant_engine.checkpoint import ActivationGrid
from quant_engine.models import StreamedModel
from quant_engine.policy import Policy, TransformKind
from quant_engine.stages.context.run import Run
from quant_engine.stages.export import CHECKPOINT, export_stage
from quant_engine.stages.quantize.block_files import Plans, block_linears, quantized_reader
from quant_engine.stages.quantize.stage import quantize_stage
from quant_engine.stages.stage import run_stage
from quant_engine.transforms.primitives import Block, Dense, Hadamard, Kronecker, Permutation, Primitive
from tests.integration.quant_engine.helpers import fixed_ids, random_plans, streamed_logits


def export(run: Run, plans: Plans) -> tuple[Path, Path]:
    """The quantized blocks and the checkpoint made of them."""
    quantized = run_stage(quantize_stage(run, plans, [], run.work_dir, "-"), run.work_dir, run.observer)
    exported = run_stage(export_stage(run, quantized, plans, "-"), run.work_dir, run.observer)
    return quantized, exported / CHECKPOINT


def in_memory_logits(
    run: Run, plans: Plans, quantized: Path, grid: ActivationGrid = ActivationGrid.ENGINES
) -> torch.Tensor:
    model = StreamedModel(run.source, dtype=run.source.dtype)
    return streamed_logits(model, fixed_ids(), *quantized_reader(quantized, block_linears(run, plans), model, grid))


def every_linear(**fields: Any) -> Policy:
    return Policy.model_validate({"targets": [r"re:.*_proj"]} | fields)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(fixed_ids()).logits
        return logits


def config_of(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    return content


def random_matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


ONLINE: dict[str, Callable[[int], tuple[Primitive, ...]]] = {
    "kronecker": lambda width: (
        Kronecker(left_AA=random_matrix(8, 8), right_BB=random_matrix(width // 8, width // 8)),
    ),
    "block": lambda width: (Block(blocks_NKK=random_matrix(width // 16, 16, 16)),),
    "dense": lambda width: (Dense(matrix_DD=random_matrix(width, width).double()),),
    "composition": lambda width: (
        Block(blocks_NKK=random_matrix(width // 8, 8, 8)),
        Permutation(index_D=torch.randperm(width, generator=torch.Generator().manual_seed(2))),
        Hadamard(order=16),
    ),
}


def online_plans(run: Run, kind: str, **fields: Any) -> Plans:
    plans = random_plans(run, TransformKind.SMOOTH)
    return {site.name: replace(plans[site.name], online=ONLINE[kind](site.features), **fields) for site in run.sites}
