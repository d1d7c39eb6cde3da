"""GPTQ (arXiv 2210.17323): columns are rounded one after another, and later columns compensate each error.

With (H + λI)⁻¹ = Uᵀ U, U upper triangular, column j of W is rounded to q_j and the rest becomes

    W_k ← W_k − (W_j − q_j) U_jk / U_jj        for k > j

which minimizes tr((W − Q) H (W − Q)ᵀ), given the columns that are rounded already.

Shapes: O output channels, I input channels, B columns of a block, G groups of an output channel.
"""

import torch
from torch import Tensor

from quant_engine.grids import Grid, Quantized, quantized_codes, weight_grid, weight_scale, weight_zero_points
from quant_engine.policy import WeightQuantization
from quant_engine.rounding.factor import GptqFactor, factorize
from quant_engine.rounding.rtn import representable_scale, scale_dtype


def gptq(
    w_OI: Tensor,
    hessian: Tensor | GptqFactor,
    spec: WeightQuantization,
    dtype: torch.dtype,
    *,
    scale: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
    peak: Tensor | None = None,
) -> Quantized:
    """Round W' so that the layer's output on the inputs of ``hessian`` changes least, for a checkpoint of ``dtype``.

    All scales are computed before the first column is rounded. Act-order changes the order in which columns are
    rounded, but not the groups that share a scale (static groups). The scales are rounded to ``dtype``, and the codes
    are computed for the rounded scales.

    A clip by squared error weighs column j by 1 / U_jj², its share of the loss. On held-out tokens these weights are
    never much worse than equal weights, and many times better if a few channels are massive. The diagonal of the
    Hessian would be worse than equal weights if channels are correlated.

    Args:
        w_OI: W' = W A⁻ᵀ, transformed already.
        hessian: H [I, I] of the transformed input, or its factor where several weights share it.
        scale: [O, 1] per channel, [O, G] per group, [1, 1] per tensor; None computes it by ``spec``.
        clip_ratio_R1, peak: a learned ρ that replaces ``spec.clip``, and the peak for NVFP4's tensor scale, both as for
            :func:`quant_engine.grids.weight_scale`.

    Raises:
        UnsupportedPolicy: ``spec`` has no codes, or a ``group_size`` that does not divide I.
        NumericalInstability: the Hessian, the weight or a scale is not finite, or the damped Hessian is not positive
            definite.
    """
    grid = weight_grid(spec).fitted(w_OI, peak)
    factor = hessian if isinstance(hessian, GptqFactor) else factorize(hessian, spec.gptq)
    with torch.no_grad():
        if scale is None:
            scale = weight_scale(w_OI, spec, importance_I=factor.importance_I, clip_ratio_R1=clip_ratio_R1, peak=peak)
        scale = representable_scale(scale, w_OI, scale_dtype(spec, dtype))
        zero = weight_zero_points(w_OI, spec)
        codes_IO = _rounded_columns(w_OI, scale, zero, factor, grid)
    return quantized_codes(codes_IO.T, scale, grid, spec.format, zero)


def _rounded_columns(w_OI: Tensor, scale: Tensor, zero: Tensor | None, factor: GptqFactor, grid: Grid) -> Tensor:
    """Return the codes [I, O], less their zero points, as floating-point numbers. Columns of W are rows here, so that
    each is contiguous."""
    width = w_OI.shape[1]
    working = torch.promote_types(w_OI.dtype, torch.float32)
    order = torch.arange(width, device=w_OI.device) if factor.order is None else factor.order
    rest_IO = w_OI.T.to(working)[order]  # a copy, because the columns are updated in place
    root_II = factor.inverse_root_II.to(working)
    # A list: the loop over columns then waits for no number from the device.
    group_I = (order // (width // scale.shape[1])).tolist()
    scale_GO = scale.T.to(working).contiguous()
    zero_GO = None if zero is None else zero.T.to(working).contiguous()
    codes_IO = torch.empty_like(rest_IO)
    for first in range(0, width, factor.block_size):
        last = min(first + factor.block_size, width)
        error_BO = _round_block(
            rest_IO[first:last],
            codes_IO[first:last],
            root_II[first:last, first:last],
            scale_GO,
            zero_GO,
            group_I[first:last],
            grid,
        )
        # All errors of the block reach the later columns in one matrix product (lazy updates, section 3.3).
        rest_IO[last:].addmm_(root_II[first:last, last:].T, error_BO, alpha=-1)
    found_IO = torch.empty_like(codes_IO)
    # Back to the original order of the columns.
    found_IO[order] = codes_IO
    return found_IO


def _round_block(
    rest_BO: Tensor,
    codes_BO: Tensor,
    root_BB: Tensor,
    scale_GO: Tensor,
    zero_GO: Tensor | None,
    group_B: list[int],
    grid: Grid,
) -> Tensor:
    """Fill ``codes_BO``, overwriting ``rest_BO``, and return the errors (W_j − q_j) / U_jj [B, O] for later blocks."""
    # Row j of U divided by U_jj, so that the loop needs no number from the device.
    pivot_B1 = root_BB.diagonal().unsqueeze(-1)
    follow_BB = root_BB / pivot_B1
    error_BO = torch.empty_like(rest_BO)
    for column, group in enumerate(group_B):
        scale_O = scale_GO[group]
        ratio_O = rest_BO[column] / scale_O
        if zero_GO is None:
            code_O = grid.nearest_(ratio_O)
        else:
            code_O = grid.nearest_(ratio_O.add_(zero_GO[group])).sub_(zero_GO[group])
        codes_BO[column] = code_O
        torch.addcmul(rest_BO[column], code_O, scale_O, value=-1, out=error_BO[column])
        rest_BO[column + 1 :].addr_(follow_BB[column, column + 1 :], error_BO[column], alpha=-1)
    return error_BO.div_(pivot_B1)
