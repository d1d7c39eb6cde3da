"""fp4 (e2m1) with a scale for every group: NVFP4 and MXFP4, with the same numbers as compressed-tensors 0.19.

    a = ρ max_j abs(v_j) / 6, as the format can store it        c_j = the nearest of 0, ½, 1, 1½, 2, 3, 4, 6 to v_j / a

NVFP4 stores g·a in e4m3, with one fp32 g = 448 · 6 / (largest value) for the whole tensor. MXFP4 stores a power of two
(OCP Microscaling Formats 1.0, with the exponent rounded so that at most 1/7 of a group's largest value is cut off).

Shapes: R groups, G values in each.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

_LARGEST: Final = 6
_E4M3_LARGEST: Final = 448
_E4M3_FOR_ZERO: Final = 0.125
"""The number that compressed-tensors stores for a scale that e4m3 rounds to zero."""
_E8M0_BIAS: Final = 127
_LARGEST_EXPONENT: Final = 2
"""The exponent of the largest code: 6 = 1.5 · 2²."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Float4Grid:
    """The codes, and the properties that both fp4 formats share."""

    @property
    def saturates(self) -> bool:
        """True: a scale that was rounded down leaves values beyond the last code."""
        return True

    @property
    def bits(self) -> int:
        """Width of a code."""
        return 4

    @property
    def largest(self) -> int:
        """q_max, the largest code."""
        return _LARGEST

    @property
    def storage(self) -> torch.dtype:
        """The dtype that holds a code: the numbers of e2m1 are among those of e4m3."""
        return torch.float8_e4m3fn

    def nearest_(self, ratio: Tensor) -> Tensor:
        """Replace ``ratio`` by the nearest codes (half to even), as floating-point numbers, and return it."""
        ratio.clamp_(-_LARGEST, _LARGEST)
        size = ratio.abs()
        # The distance between two codes of e2m1: ½ in 0 … 2, 1 in 2 … 4, and 2 in 4 … 6.
        step = torch.full_like(ratio, 0.5).masked_fill_(size >= 2, 1.0).masked_fill_(size >= 4, 2.0)
        return ratio.div_(step).round_().mul_(step)

    def clamped(self, ratio: Tensor, _: Tensor) -> Tensor:
        """Return where ``ratio`` is beyond the largest code."""
        return ratio.abs() > _LARGEST


@dataclass(frozen=True, kw_only=True, eq=False)
class NvFloat4Grid(Float4Grid):
    """NVFP4.

    Attributes:
        global_scale: g, fp32 [1]; None computes it from the values that are quantized.
    """

    global_scale: Tensor | None = None

    @property
    def scale_storage(self) -> torch.dtype | None:
        """The dtype of a stored scale."""
        return torch.float8_e4m3fn

    def fitted(self, v_RG: Tensor, peak: Tensor | None = None) -> "NvFloat4Grid":
        """Return the grid with g computed from ``peak``, or else from the largest absolute value of ``v_RG``.

        A grid whose g is fixed already is returned unchanged.
        """
        if self.global_scale is not None:
            return self
        return replace(self, global_scale=global_scale(v_RG.detach().abs().amax() if peak is None else peak))

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor) -> Tensor:
        """Return a [R, 1] = e4m3(g · ρ absmax / 6) / g, in the wider of the values' type and fp32.

        Raises:
            ValueError: g is not fixed; see :meth:`fitted`.
        """
        g_1 = self._fitted_scale()
        wanted_R1 = g_1 * (absmax_R1 * clip_ratio / _LARGEST)
        local_R1 = e4m3(wanted_R1).to(wanted_R1.dtype)
        # A scale of zero could not divide the values.
        return torch.where(local_R1 == 0, torch.full_like(local_R1, _E4M3_FOR_ZERO), local_R1) / g_1

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Return g · a in e4m3.

        Raises:
            ValueError: g is not fixed; see :meth:`fitted`.
        """
        return e4m3(scale * self._fitted_scale())

    def _fitted_scale(self) -> Tensor:
        if self.global_scale is None:
            raise ValueError("an NVFP4 grid has to be fitted before it has scales")
        return self.global_scale


@dataclass(frozen=True, kw_only=True, eq=False)
class MxFloat4Grid(Float4Grid):
    """MXFP4."""

    @property
    def scale_storage(self) -> torch.dtype | None:
        """The dtype of a stored scale, the biased exponent."""
        return torch.uint8

    @property
    def global_scale(self) -> Tensor | None:
        """None: MXFP4 has no scale of the whole tensor."""
        return None

    def fitted(self, _v_RG: Tensor, _peak: Tensor | None = None) -> "MxFloat4Grid":
        """Return the grid unchanged, because a group's scale depends on that group alone."""
        return self

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor) -> Tensor:
        """Return a [R, 1] of :func:`power_of_two_step`."""
        return power_of_two_step(absmax_R1, clip_ratio, largest_exponent=_LARGEST_EXPONENT)

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Return the biased exponents."""
        return e8m0(scale)


def power_of_two_step(absmax_R1: Tensor, clip_ratio: float | Tensor, *, largest_exponent: int) -> Tensor:
    """Return the scales a [R, 1] of microscaling formats, the powers of two 2^(k − largest_exponent).

    k is the number with absmax · ρ in [0.875 · 2^k, 1.75 · 2^k).

    Args:
        largest_exponent: of the format's largest code.
    """
    wide = torch.promote_types(absmax_R1.dtype, torch.float32)
    mantissa_R1, exponent_R1 = torch.frexp((absmax_R1 * clip_ratio).to(wide))
    # frexp's mantissa is in [½, 1), one binade below the usual [1, 2).
    exponent_R1 = exponent_R1 - (largest_exponent + 1) + (mantissa_R1 >= 0.875).to(exponent_R1.dtype)
    # A group of zeros gets the smallest scale; frexp gives the exponent 0 for it.
    exponent_R1 = torch.where(absmax_R1 == 0, torch.full_like(exponent_R1, -_E8M0_BIAS), exponent_R1)
    one_R1 = torch.ones_like(absmax_R1, dtype=wide)
    return torch.ldexp(one_R1, exponent_R1.clamp_(min=-_E8M0_BIAS)).to(absmax_R1.dtype)


def global_scale(peak: Tensor) -> Tensor:
    """Return g = 448 · 6 / peak, fp32 [1]; 1 for a peak of zero, or so small that g would overflow."""
    # With this g the group of the peak has the largest scale that e4m3 can hold.
    g = (_E4M3_LARGEST * _LARGEST) / peak.clamp(min=torch.finfo(peak.dtype).tiny)
    return torch.nan_to_num(g, nan=1.0, posinf=1.0, neginf=1.0).to(torch.float32).reshape(1)


def e4m3(v: Tensor) -> Tensor:
    """Return the nearest float8_e4m3fn (half to even), saturating at ±448."""
    return v.clamp(-_E4M3_LARGEST, _E4M3_LARGEST).to(torch.float8_e4m3fn)


def e8m0(scale: Tensor) -> Tensor:
    """Return the biased exponents of powers of two, uint8."""
    return (torch.frexp(scale).exponent - 1 + _E8M0_BIAS).to(torch.uint8)
