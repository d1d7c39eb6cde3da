"""Integers with a zero point for every row of weights that shares a scale.

    a = ρ (max(v, 0) − min(v, 0)) / (2^b − 1)       z = round(−2^(b−1) − ρ min(v, 0) / a)
    c_j = clamp(round(v_j / a) + z)                 q_j = a (c_j − z)

ρ cancels in z, so a row has the same zero point whatever its clip. Zero is always among the
values, so z is a code.

Shapes: R rows, G values in each.
"""

import torch
from torch import Tensor

from quant_engine.online.grid import largest_code


def row_zero_points(v_RG: Tensor, bits: int) -> Tensor:
    """Return z [R, 1], as floating-point numbers; 0 for a row of zeros."""
    low_R1, span_R1 = _range(v_RG)
    step_R1 = span_R1 / ((1 << bits) - 1)
    zero_R1 = (-(1 << (bits - 1)) - low_R1 / step_R1).round().clamp(-(1 << (bits - 1)), largest_code(bits))
    return torch.where(span_R1 > 0, zero_R1, torch.zeros_like(zero_R1))


def asymmetric_scales(v_RG: Tensor, bits: int, clip_ratio: float | Tensor = 1.0) -> Tensor:
    """Return a [R, 1]; 1 for a row of zeros."""
    scale_R1 = _range(v_RG)[1] * (clip_ratio / ((1 << bits) - 1))
    return torch.where(scale_R1 > 0, scale_R1, torch.ones_like(scale_R1))


def asymmetric_codes(v_RG: Tensor, scale_R1: Tensor, zero_R1: Tensor, bits: int) -> Tensor:
    """Return c − z [R, G], as floating-point numbers."""
    codes_RG = (v_RG / scale_R1).round_().add_(zero_R1).clamp_(-(1 << (bits - 1)), largest_code(bits))
    return codes_RG.sub_(zero_R1)


def fake_quantize_asymmetric(v_RG: Tensor, bits: int, clip_ratio: float | Tensor = 1.0) -> Tensor:
    """Return q [R, G], with gradients that ignore the rounding and nothing else, also for a tensor ρ."""
    if isinstance(clip_ratio, Tensor):
        # Rows of ρ in another precision would promote the result.
        clip_ratio = clip_ratio.to(v_RG.dtype)
    zero_R1, scale_R1 = row_zero_points(v_RG.detach(), bits), asymmetric_scales(v_RG, bits, clip_ratio)
    ratio_RG = v_RG / scale_R1
    rounded_RG = ratio_RG + (ratio_RG.round() - ratio_RG).detach()
    codes_RG = (rounded_RG + zero_R1).clamp(-(1 << (bits - 1)), largest_code(bits))
    return (codes_RG - zero_R1) * scale_R1


def _range(v_RG: Tensor) -> tuple[Tensor, Tensor]:
    """The lower end of each row's values and zero, and the span up to their upper end, each [R, 1]."""
    low_R1 = v_RG.amin(dim=-1, keepdim=True).clamp(max=0.0)
    return low_R1, v_RG.amax(dim=-1, keepdim=True).clamp(min=0.0) - low_R1
