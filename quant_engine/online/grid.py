"""The grid of dynamic integer activations, as serving engines compute it.

    a = ρ max_j abs(x_j) / (2^(b−1) − 1)        c_j = clamp(round(x_j / a), −2^(b−1), 2^(b−1) − 1)

A token's largest value gets the code 127 at eight bits and 7 at four. vLLM's int8 kernels and TensorRT-LLM divide by
127. Humming, which is the kernel that runs int4, divides by 7 (docs/decisions/0031). compressed-tensors' own forward in
Python divides by 127.5 and 7.5 instead.

Groups of a token's channels have a scale each where the weights have groups too, by the same rule. An asymmetric
input of eight bits has a zero point z, as vLLM computes it:

    a = (max_j x_j − min_j x_j) / 255        z = round(−128 − min_j x_j / a)        c_j = clamp(round(x_j / a) + z)

Shapes: T tokens, I channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def largest_code(bits: int) -> int:
    """Return q_max = 2^(bits − 1) − 1: 7 for int4, whose smallest code is −8."""
    return (1 << (bits - 1)) - 1


def row_scale(absmax: Tensor, largest: int, clip_ratio: float | Tensor = 1.0) -> Tensor:
    """Return the scale ρ · absmax / ``largest`` of rows, in the dtype of ``absmax``; 1 where that is zero."""
    scale = absmax * (clip_ratio / largest)
    # Zeros, and values so small that the scale underflows, must not be divided by zero.
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def nearest_integers_(ratio: Tensor, bits: int) -> Tensor:
    """Replace ``ratio`` by the nearest codes (half to even), as floating-point numbers, and return it."""
    return ratio.round_().clamp_(-largest_code(bits) - 1, largest_code(bits))


def rounded_token(x_TI: Tensor, bits: int, clip_ratio: float = 1.0) -> Tensor:
    """Return codes × scale [..., I], in the dtype of ``x_TI``; half precision is rounded in fp32.

    Args:
        x_TI: any leading axes; the last one holds the channels of a token, which share a scale.
        clip_ratio: ρ in (0, 1]: larger values get the last code.
    """
    wide_TI = x_TI.to(torch.promote_types(x_TI.dtype, torch.float32))
    scale_T1 = row_scale(wide_TI.abs().amax(dim=-1, keepdim=True), largest_code(bits), clip_ratio)
    return (nearest_integers_(wide_TI / scale_T1, bits) * scale_T1).to(x_TI.dtype)


def rounded_asymmetric_token(x_TI: Tensor, bits: int) -> Tensor:
    """Return (codes − zero point) × scale [..., I], in the dtype of ``x_TI``; half precision is rounded in fp32."""
    wide_TI = x_TI.to(torch.promote_types(x_TI.dtype, torch.float32))
    low_T1, high_T1 = wide_TI.amin(dim=-1, keepdim=True), wide_TI.amax(dim=-1, keepdim=True)
    scale_T1 = row_scale(high_T1 - low_T1, (1 << bits) - 1)
    zero_T1 = (-(1 << (bits - 1)) - low_T1 / scale_T1).round()
    # A token of one value has a range of zero. Its scale is 1, and codes beyond the grid would cut it off.
    codes_TI = ((wide_TI / scale_T1).round() + zero_T1).clamp(-(1 << (bits - 1)), largest_code(bits))
    found_TI = torch.where(high_T1 > low_T1, (codes_TI - zero_T1) * scale_T1, wide_TI)
    return found_TI.to(x_TI.dtype)


@dataclass(frozen=True)
class ServedIntegers:
    """How engines round the input of a linear to integers.

    Attributes:
        bits: width of a code.
        group_size: how many neighboring channels share a scale; None where a token has one.
        symmetric: whether there is no zero point.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True

    def rounded(self, x_TI: Tensor, clip_ratio: float = 1.0) -> Tensor:
        """Return codes × scale [..., I], in the dtype of ``x_TI``. Only whole, symmetric tokens are clipped."""
        if not self.symmetric:
            return rounded_asymmetric_token(x_TI, self.bits)
        if self.group_size is None:
            return rounded_token(x_TI, self.bits, clip_ratio)
        # [..., I] → [..., I / size, size]: each group is rounded like a token.
        return rounded_token(x_TI.reshape(*x_TI.shape[:-1], -1, self.group_size), self.bits).reshape(x_TI.shape)
