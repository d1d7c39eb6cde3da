"""Stage ``quantize``: fuse the scales of each block, transform and round its weights, and write it as it is exported.

Rounding to nearest needs only the weights. GPTQ streams the calibration samples through the original blocks, and with a
correction through the quantized blocks too (:mod:`quant_engine.stages.sample_streams`). Layer rows are then measured
again with the exported weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.checkpoint import packed_tensors
from quant_engine.checkpoint.quantry_section import check_profile_of
from quant_engine.grids import shared_peak
from quant_engine.interface.layers import LayerRow
from quant_engine.models import Site
from quant_engine.resume_state import StateFile
from quant_engine.rounding import corrected_weight, factorize, round_weight
from quant_engine.stages.calibrate import RECORDS, read_windows, training_windows
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize.block_files import (
    Plans,
    block_linears,
    block_path,
    fused_clips,
    stored_weights,
    transformed_block,
)
from quant_engine.stages.quantize.exported_input import exported_input
from quant_engine.stages.quantize.remeasured_rows import remeasure
from quant_engine.stages.sample_streams import OpenBlock, Streams, open_block
from quant_engine.stages.stage import Stage, StageProgress
from quant_engine.training.quantized_linears import QuantizedSite
from quant_engine.transforms import SitePlan, transform_activation


def quantize_stage(run: Run, plans: Plans, rows: Sequence[LayerRow], calibrated: Path, upstream: str) -> Stage:
    """The stage that writes ``block-<i>.safetensors`` for every block and ``ends.safetensors``. One unit per block.

    Args:
        rows: the layer rows as ``select`` measured them; written again where a weight is not rounded to nearest.
        calibrated: the directory of ``calibrate``.

    Raises:
        UnsupportedPolicy: the plans need something that the output's profile does not allow.
    """
    linears = [each for block in block_linears(run, plans).values() for each in block.values()]
    # Checked before the long work starts, and not at the export.
    check_profile_of(linears, run.spec.output.profile)

    def produce(directory: Path, progress: StageProgress) -> None:
        streams = _streams(run, calibrated, directory)
        done = 0 if streams is None else streams.first
        for block in range(run.model.blocks):
            if block >= done:
                _produce_block(run, block, plans, streams, directory)
            # Also for blocks of an earlier attempt, because the observer needs every row again. The state is stored
            # only after the rows, so a block that counts as done has its rows on disk.
            remeasure(run, block, plans, rows, calibrated / RECORDS, directory)
            if streams is not None and block >= done:
                streams.keep(block + 1, last=block + 1 == run.model.blocks)
            progress.reach(block + 1)
        ends = run.source.read(run.model.end_names, dtype=run.source.dtype)
        with atomic_write(directory / "ends.safetensors") as temporary:
            save_file(ends, temporary)

    return Stage(
        name="quantize",
        unit="block",
        total=run.model.blocks,
        inputs={"upstream": upstream},
        produce=produce,
        resumable=True,
    )


def _streams(run: Run, calibrated: Path, directory: Path) -> Streams | None:
    """The calibration streams that GPTQ needs, continued from the latest state; None if all is rounded to nearest."""
    weights = [run.settings[site.name].weights for site in run.sites]
    gptq = [each.gptq for each in weights if each.rounding == "gptq"]
    if not gptq:
        return None
    return Streams(
        run.model,
        # Without the test samples, on which errors are reported (docs/decisions/0004).
        training_windows(run, read_windows(calibrated)),
        quantized=any(each.correction > 0 for each in gptq),
        execution=run.execution(StateFile(directory)),
    )


def _produce_block(run: Run, block: int, plans: Plans, streams: Streams | None, directory: Path) -> None:
    """Write the block's file unless an earlier attempt did, and send the streams through the block."""
    path = block_path(directory, block)
    sites = [site for site in run.sites if site.block == block]
    # Without streams everything is rounded to nearest; without sites both streams pass through the original block.
    if streams is None or not sites:
        if not path.is_file():
            _write_block(path, quantized_block(run, block, plans, transformed_block(run, block, plans), {}))
        if streams is not None:
            with open_block(run, streams, block) as opened:
                opened.advance()
        return
    state = transformed_block(run, block, plans)
    with open_block(run, streams, block, state) as opened:
        opened.unrounded({site.name: _unrounded(site, state, plans[site.name]) for site in sites})
        if not path.is_file():
            tensors: dict[str, Tensor] = {}
            for site in sites:
                tensors |= _rounded_site(run, site, state, plans, opened)
            _write_block(path, quantized_block(run, block, plans, state, tensors))
        # Read from the file, which an earlier attempt may have written, so that both cases give the stream the same
        # weights.
        stored = stored_weights(run, directory, block, plans)
        for site in sites:
            opened.settle(site, _settled(run, site, plans[site.name], stored))
        opened.advance()


def _rounded_site(
    run: Run, site: Site, state: Mapping[str, Tensor], plans: Plans, opened: OpenBlock
) -> dict[str, Tensor]:
    """Round the weights of one site and return them packed. The earlier sites of its block are already rounded.

    Args:
        state: the block with its diagonals fused and its weights transformed. A linear may also produce a site (v, up).
            Its rows are then already divided by that site's diagonal.
    """
    spec, plan = run.settings[site.name].weights, plans[site.name].to(run.model.device)
    transformed = [state[f"{reader}.weight"] for reader in site.readers]
    factor = None
    if spec.rounding == "gptq":
        # Without a correction the Hessian is that of the original input, which is not rounded.
        rounder = _rounder(run, site, plan) if spec.gptq.correction else None
        moments = opened.moments(site, plan, rounder)
        factor = factorize(moments.hessian_II, spec.gptq)
        if moments.cross_II is not None:
            strength, damping = spec.gptq.correction, spec.gptq.damping
            cross_II, hessian_II = moments.cross_II, moments.hessian_II
            transformed = [
                corrected_weight(w_OI, cross_II, hessian_II, strength=strength, damping=damping) for w_OI in transformed
            ]
    tensors: dict[str, Tensor] = {}
    dense = {}
    clips = fused_clips(run, site, plans, transformed)
    # Over all linears of the site: engines run them as one linear, which has one NVFP4 tensor scale.
    peak = shared_peak(transformed)
    for reader, w_OI, clip_R1 in zip(site.readers, transformed, clips, strict=True):
        rounded = round_weight(w_OI, spec, run.source.dtype, hessian=factor, clip_ratio_R1=clip_R1, peak=peak)
        dense[f"{reader}.weight"] = rounded.dequantize()
        tensors |= packed_tensors(reader, rounded)
    # Later sites of this block must see this one rounded.
    opened.settle(site, _settled(run, site, plan, dense))
    return tensors


def _unrounded(site: Site, state: Mapping[str, Tensor], plan: SitePlan) -> QuantizedSite:
    weights = tuple(state[f"{reader}.weight"] for reader in site.readers)
    return QuantizedSite(
        rounder=partial(transform_activation, plan=_online_part(plan.to(weights[0].device))), weights=weights
    )


def _settled(run: Run, site: Site, plan: SitePlan, dense: Mapping[str, Tensor]) -> QuantizedSite:
    """The site as the checkpoint will run it, computed in fp32."""
    device = run.model.device
    weights = tuple(dense[f"{reader}.weight"].to(device, run.model.dtype) for reader in site.readers)
    return QuantizedSite(rounder=_rounder(run, site, plan), weights=weights)


def _rounder(run: Run, site: Site, plan: SitePlan) -> Callable[[Tensor], Tensor]:
    """Return the function that rounds the site's input as the exported linears do, with the diagonal already fused."""
    # All linears of a site have the same online part and the same activations, so the first one stands for all.
    return partial(exported_input, linear=run.quantized_linears(site, plan)[0])


def _online_part(plan: SitePlan) -> SitePlan:
    return replace(plan, scales_D=None, permutation_D=None)


def _write_block(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_write(path) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)


def quantized_block(
    run: Run, block: int, plans: Plans, state: Mapping[str, Tensor], rounded: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A block's tensors as the checkpoint stores them, with dense tensors and scales in the checkpoint's type.

    Args:
        state: the block as :func:`transformed_block` returns it. It is not changed.
        rounded: the packed weights of the whole block where GPTQ made them. If it is empty, all are rounded to nearest.
    """
    dtype, state = run.source.dtype, dict(state)  # a copy, from which ``_nearest`` removes the weights
    tensors = dict(rounded)
    for site in run.sites:
        if site.block == block:
            tensors |= _nearest(run, site, plans, state, known=bool(rounded))
    return tensors | {name: tensor.to(dtype) for name, tensor in state.items()}


def _nearest(run: Run, site: Site, plans: Plans, state: dict[str, Tensor], *, known: bool) -> dict[str, Tensor]:
    """Remove the site's weights from ``state``. Return them rounded to nearest, or nothing where they are known."""
    linears = [state.pop(f"{reader}.weight") for reader in site.readers]
    tensors: dict[str, Tensor] = {}
    if not known:
        spec, peak = run.settings[site.name].weights, shared_peak(linears)
        clips = fused_clips(run, site, plans, linears)
        for reader, w_OI, clip_R1 in zip(site.readers, linears, clips, strict=True):
            rounded = round_weight(w_OI, spec, run.source.dtype, clip_ratio_R1=clip_R1, peak=peak)
            tensors |= packed_tensors(reader, rounded)
    return tensors
