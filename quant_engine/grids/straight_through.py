"""Symmetric round-to-nearest of rows that share one scale each, with a straight-through estimator.

    a = ρ max_j abs(v_j) / q_max        c_j = the grid's nearest code to v_j / a        q_j = a c_j

fp4 rounds a to a number that it can store; the gradient treats that rounding as the identity too.

Shapes: R rows (a token, an output channel, a group or a whole tensor), G values in each.
"""

from typing import Any

import torch
from torch import Tensor

from quant_engine.grids.grid import Grid


def row_scales(v_RG: Tensor, *, grid: Grid, clip_ratio: float | Tensor = 1.0) -> Tensor:
    """Return the scale a of each row [R, 1]. It is positive for a row of zeros too; its codes are all 0.

    An NVFP4 grid has to be fitted to the whole tensor.
    """
    return grid.step(v_RG.abs().amax(dim=-1, keepdim=True), clip_ratio)


def row_codes(v_RG: Tensor, scale_R1: Tensor, *, grid: Grid) -> Tensor:
    """Return the codes c [R, G], as floating-point numbers."""
    return grid.nearest_(v_RG / scale_R1)


def fake_quantize_on_grid(v_RG: Tensor, *, grid: Grid, clip_ratio: float | Tensor = 1.0) -> Tensor:
    """Return q [R, G], with gradients that ignore the rounding and nothing else.

    A gradient reaches v through the scale too, and it is zero through a clamped code (arXiv 2606.09927,
    straight-through estimator).

    Args:
        grid: for NVFP4 its tensor scale is that of ``v_RG``, unless it is fitted already.
        clip_ratio: ρ > 0; a tensor, which is a scalar or one for each row [R, 1], gets a gradient (the learned clipping
            of OmniQuant, arXiv 2308.13137, and FlatQuant, arXiv 2410.09426).
    """
    if isinstance(clip_ratio, Tensor):
        # Rows of ρ in another precision would promote the result.
        clip_ratio = clip_ratio.to(v_RG.dtype)
    quantized: Tensor = _FakeQuantizeRows.apply(v_RG, grid.fitted(v_RG), clip_ratio)  # type: ignore[no-untyped-call]  # torch's apply
    return quantized


class _FakeQuantizeRows(torch.autograd.Function):
    """The whole operation as one autograd node, with a third of the time and memory of a node for each part.

    With r = 1 where a code is not clamped and 0 elsewhere, ∂q_j/∂v_j = r_j and ∂q_j/∂a = c_j − r_j v_j/a;
    ∂a/∂v_m = ρ sign(v_m)/q_max at the largest entry m (the first of them on a tie), and ∂a/∂ρ = abs(v_m)/q_max.
    """

    @staticmethod
    def forward(ctx: Any, v_RG: Tensor, grid: Grid, clip_ratio: float | Tensor) -> Tensor:
        scale_R1 = row_scales(v_RG, grid=grid, clip_ratio=clip_ratio)
        codes_RG = row_codes(v_RG, scale_R1, grid=grid)
        if any(ctx.needs_input_grad):
            learned = isinstance(clip_ratio, Tensor)
            peak_R1 = v_RG.abs().argmax(dim=-1, keepdim=True)
            top_R1 = v_RG.gather(-1, peak_R1)
            ratio_RG = v_RG / scale_R1
            by_scale_RG = codes_RG - ratio_RG  # ∂q/∂a
            # Without a clip and with an exact scale no value lies beyond the last code, so no mask is stored.
            clamped_RG = None
            if grid.saturates or learned or clip_ratio < 1.0:
                clamped_RG = grid.clamped(ratio_RG, codes_RG)
                by_scale_RG = torch.where(clamped_RG, codes_RG, by_scale_RG)
            slope_R1 = top_R1.sign() * (clip_ratio / grid.largest)  # ∂a/∂v_m
            reach_R1 = top_R1.abs() / grid.largest if learned else None  # ∂a/∂ρ
            ctx.ratio_shape = clip_ratio.shape if isinstance(clip_ratio, Tensor) else None
            ctx.save_for_backward(by_scale_RG, clamped_RG, peak_R1, slope_R1, reach_R1)
        return (codes_RG * scale_R1).to(v_RG.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (grad_RG,) = grads
        by_scale_RG, clamped_RG, peak_R1, slope_R1, reach_R1 = ctx.saved_tensors
        scale_grad_R1 = (grad_RG * by_scale_RG).sum(dim=-1, keepdim=True)
        v_grad_RG = ratio_grad = None
        if ctx.needs_input_grad[0]:
            v_grad_RG = grad_RG.clone()
            if clamped_RG is not None:
                v_grad_RG.masked_fill_(clamped_RG, 0.0)
            # The scale depends on the largest entry of the row alone.
            v_grad_RG.scatter_add_(-1, peak_R1, scale_grad_R1 * slope_R1)
        if ctx.needs_input_grad[2]:
            # A scalar ρ is used by every row, so its gradient is the sum over the rows.
            ratio_grad = (scale_grad_R1 * reach_R1).sum_to_size(ctx.ratio_shape)
        return v_grad_RG, None, ratio_grad
