"""Stage ``quantize``: each block with its scales fused, its weights rotated and rounded, as a checkpoint stores it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant_engine.checkpoint import (
    QuantizedLinear,
    packed_tensors,
    prepare_quantized,
    unpacked_state,
)
from quant_engine.models import StreamedModel, fuse_scales
from quant_engine.rounding import round_to_nearest
from quant_engine.stages.context import Run
from quant_engine.stages.files import Progress, Stage, whole_file
from quant_engine.transforms import SitePlan

Plans = Mapping[str, SitePlan]


def quantize_stage(run: Run, plans: Plans, upstream: str) -> Stage:
    """Writes ``block-<i>.safetensors`` for every block and ``ends.safetensors``. One unit per block."""

    def produce(directory: Path, progress: Progress) -> None:
        dtype = run.source.dtype
        for block in range(run.model.blocks):
            path = block_path(directory, block)
            if not path.is_file():
                tensors = quantized_block(run, block, plans, dtype)
                with whole_file(path) as temporary:
                    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
            progress.reach(block + 1)
        ends = run.source.read(run.model.end_names, dtype=dtype)
        with whole_file(directory / "ends.safetensors") as temporary:
            save_file(ends, temporary)

    return Stage(
        name="quantize",
        unit="block",
        total=run.model.blocks,
        inputs={"upstream": upstream},
        produce=produce,
        resumable=True,
    )


def block_path(directory: Path, block: int) -> Path:
    """A quantized block's file."""
    return directory / f"block-{block:05d}.safetensors"


def transformed_block(run: Run, block: int, plans: Plans) -> dict[str, Tensor]:
    """A block's fp32 parameters under its sites' transforms, nothing rounded: scales fused, weights rotated.

    With the online rotations in front of the linears it computes what the original block computes.
    """
    state = run.model.read_block(block)
    sites = [site for site in run.sites if site.block == block]
    for site in sites:
        scales_D = plans[site.name].scales_D
        if scales_D is not None:
            fuse_scales(state, site, scales_D.to(run.model.device))
    for site in sites:
        for primitive in plans[site.name].online:
            for reader in site.readers:
                weight = state[f"{reader}.weight"]
                state[f"{reader}.weight"] = primitive.to(weight.device).apply_inverse_transpose(weight)
    return state


def quantized_block(run: Run, block: int, plans: Plans, dtype: torch.dtype) -> dict[str, Tensor]:
    """A block's tensors as the checkpoint stores them, dense ones and scales in ``dtype``."""
    state = transformed_block(run, block, plans)
    tensors: dict[str, Tensor] = {}
    for site in run.sites:
        if site.block == block:
            for reader in site.readers:
                weights = run.settings[site.name].weights
                tensors |= packed_tensors(reader, round_to_nearest(state.pop(f"{reader}.weight"), weights, dtype))
    return tensors | {name: tensor.to(dtype) for name, tensor in state.items()}


def block_linears(run: Run, plans: Plans) -> dict[int, dict[str, QuantizedLinear]]:
    """Every quantized linear by block and name."""
    linears: dict[int, dict[str, QuantizedLinear]] = {block: {} for block in range(run.model.blocks)}
    for site in run.sites:
        linears[site.block] |= {each.name: each for each in run.quantized_linears(site, plans[site.name])}
    return linears


def quantized_reader(
    directory: Path, linears: Mapping[int, Mapping[str, QuantizedLinear]], model: StreamedModel
) -> tuple[Callable[[int], Mapping[str, Tensor]], Callable[[nn.Module, int], None]]:
    """How :class:`StreamedModel` streams the quantized model: where its blocks are, and what they compute with."""

    def read(block: int) -> Mapping[str, Tensor]:
        stored = load_file(block_path(directory, block), device=str(model.device))
        return unpacked_state(stored, linears[block])

    def prepare(layer: nn.Module, block: int) -> None:
        prefix = model.architecture.block_prefix(block)
        for name, settings in linears[block].items():
            prepare_quantized(layer.get_submodule(name.removeprefix(prefix)), settings)

    return read, prepare


def dense_linears(run: Run) -> list[str]:
    """The linears that stay dense, the head among them."""
    quantized = {reader for site in run.sites for reader in site.readers}
    readers = [reader for site in run.every_site for reader in site.all_readers]
    return [reader for reader in readers if reader not in quantized] + [run.model.architecture.head]
