"""The files of a run's quantized blocks: their paths, the settings of their linears, and how they are read.

Shapes: O output and I input channels, P parameters of a diagonal.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from quant_engine.checkpoint import ActivationGrid, QuantizedLinear, prepare_quantized, unpacked_state
from quant_engine.models import Site, StreamedModel, fuse_permutation, fuse_scales, fused_rows
from quant_engine.stages.context.run import Run
from quant_engine.transforms import SitePlan

Plans = Mapping[str, SitePlan]


def block_path(directory: Path, block: int) -> Path:
    """The path of a quantized block's file."""
    return directory / f"block-{block:05d}.safetensors"


def transformed_block(run: Run, block: int, plans: Plans) -> dict[str, Tensor]:
    """A block's fp32 parameters under its sites' transforms, not rounded: scales and permutations fused, weights
    rotated.

    With the online rotations before the linears it computes what the original block computes.
    """
    state = run.model.read_block(block)
    sites = [site for site in run.sites if site.block == block]
    # Diagonals first: W' = W Λ P⁻ᵀ, so the online part acts on columns that are already scaled.
    for site in sites:
        scales_D = plans[site.name].scales_D
        if scales_D is not None:
            fuse_scales(state, site, scales_D.to(run.model.device))
        permutation_D = plans[site.name].permutation_D
        if permutation_D is not None:
            fuse_permutation(state, site, permutation_D)
    for site in sites:
        for primitive in plans[site.name].online:
            for reader in site.readers:
                weight = state[f"{reader}.weight"]
                state[f"{reader}.weight"] = primitive.to(weight.device).apply_inverse_transpose(weight)
    return state


def stored_weights(run: Run, directory: Path, block: int, plans: Plans) -> dict[str, Tensor]:
    """Q(W') of a quantized block's linears, unpacked from its file, by ``<name>.weight``."""
    state = unpacked_state(load_file(block_path(directory, block)), block_linears(run, plans)[block])
    readers = [reader for site in run.sites if site.block == block for reader in site.readers]
    return {f"{reader}.weight": state[f"{reader}.weight"] for reader in readers}


def unfused_rows(run: Run, block: int, plans: Plans, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` of a block with the changes of their rows undone, so that they approximate the original linears.

    The rows of a linear that produces a site (v, up) are divided by that site's diagonal, and may be permuted, as those
    of gate are then too. Here they get the original order and are multiplied by the diagonal again.
    """
    found = dict(weights)
    for linear, index_O in permuted_rows(run, block, plans).items():
        if f"{linear}.weight" in found:
            found[f"{linear}.weight"] = found[f"{linear}.weight"][index_O.argsort()]
    for site in run.sites:
        name, scales_D = f"{site.producer}.weight", plans[site.name].scales_D
        if site.block != block or scales_D is None or name not in found:
            continue
        index_D = site.tie_index()
        # [D] → [P]: tied channels hold equal scales, so it does not matter which of them is written last.
        s_P = torch.empty(int(index_D.max()) + 1).scatter_(0, index_D, scales_D.float().cpu())
        w_OI = found[name].clone()
        w_OI[-len(s_P) :] *= s_P.to(w_OI)[:, None]  # the last rows of a fused linear
        found[name] = w_OI
    return found


def permuted_rows(run: Run, block: int, plans: Plans) -> dict[str, Tensor]:
    """The order [O] of the rows of each linear of a block that a fused permutation changes, by the linear's name."""
    found: dict[str, Tensor] = {}
    for site in run.sites:
        permutation_D = plans[site.name].permutation_D
        if site.block == block and permutation_D is not None:
            found |= fused_rows(site, permutation_D)
    return found


def fused_clips(run: Run, site: Site, plans: Plans, linears: Sequence[Tensor]) -> list[Tensor | None]:
    """The learned clip ratio of each scale of a site's linears [R, 1], their rows in the order in which they are fused;
    None if nothing was learned."""
    plan, orders = plans[site.name], permuted_rows(run, site.block, plans)
    if plan.weight_clip_OG is None:
        return [None] * len(linears)
    clips = torch.split(plan.weight_clip_OG.to(run.model.device), [w_OI.shape[0] for w_OI in linears])
    return [
        (clip_OG if name not in orders else clip_OG[orders[name]]).reshape(-1, 1)
        for name, clip_OG in zip(site.readers, clips, strict=True)
    ]


def block_linears(run: Run, plans: Plans) -> dict[int, dict[str, QuantizedLinear]]:
    """Every quantized linear by block and name."""
    linears: dict[int, dict[str, QuantizedLinear]] = {block: {} for block in range(run.model.blocks)}
    for site in run.sites:
        linears[site.block] |= {each.name: each for each in run.quantized_linears(site, plans[site.name])}
    return linears


def quantized_reader(
    directory: Path,
    linears: Mapping[int, Mapping[str, QuantizedLinear]],
    model: StreamedModel,
    grid: ActivationGrid = ActivationGrid.ENGINES,
) -> tuple[Callable[[int], Mapping[str, Tensor]], Callable[[nn.Module, int], None]]:
    """Return the two callbacks with which :class:`StreamedModel` streams the quantized model.

    The first reads a block's parameters. The second makes its linears compute as the exported ones do, with dynamic
    integer inputs on ``grid``.
    """

    def read(block: int) -> Mapping[str, Tensor]:
        stored = load_file(block_path(directory, block), device=str(model.device))
        return unpacked_state(stored, linears[block])

    def prepare(layer: nn.Module, block: int) -> None:
        prefix = model.architecture.block_prefix(block)
        for name, settings in linears[block].items():
            prepare_quantized(layer.get_submodule(name.removeprefix(prefix)), settings, grid)

    return read, prepare


def dense_linears(run: Run) -> list[str]:
    """The names of the linears that stay dense, including the head."""
    quantized = {reader for site in run.sites for reader in site.readers}
    readers = [reader for site in run.every_site for reader in site.all_readers]
    return [reader for reader in readers if reader not in quantized] + [run.model.architecture.head]
