"""The number formats as grids: which codes there are, and the nearest one to a value in units of the scale."""

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from quant_engine.grids.float4 import MxFloat4Grid, NvFloat4Grid
from quant_engine.policy import NumberFormat


class _FreeScale:
    """Scales are any number: a = ρ absmax / q_max, and 1 for zeros (or values so small that a would vanish)."""

    saturates = False

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""
        raise NotImplementedError

    def fitted(self, _v_RG: Tensor, _peak: Tensor | None = None) -> Self:
        """The same: a row's scale depends on nothing else."""
        return self

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor) -> Tensor:
        """a [R, 1]."""
        scale_R1 = absmax_R1 * (clip_ratio / self.largest)
        return torch.where(scale_R1 > 0, scale_R1, torch.ones_like(scale_R1))


@dataclass(frozen=True)
class IntegerGrid(_FreeScale):
    """The integers of ``bits`` bits, −2^(bits−1) … 2^(bits−1) − 1, of which a scale spans the symmetric part."""

    bits: int

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""
        return largest_code(self.bits)

    @property
    def storage(self) -> torch.dtype:
        """The dtype that holds a code."""
        return torch.int8

    def nearest_(self, ratio: Tensor) -> Tensor:
        """The nearest codes (half to even) as floating-point numbers, in place of ``ratio``."""
        return ratio.round_().clamp_(-self.largest - 1, self.largest)

    def clamped(self, ratio: Tensor, codes: Tensor) -> Tensor:
        """Where ``ratio`` lies beyond the last code's half step."""
        return (codes - ratio).abs_() > 0.5


@dataclass(frozen=True)
class Float8Grid(_FreeScale):
    """float8 e4m3 without infinities (arXiv 2209.05433): 3 bits of mantissa, largest 448, smallest 2⁻⁹."""

    @property
    def bits(self) -> int:
        """Width of a code."""
        return 8

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""
        return 448

    @property
    def storage(self) -> torch.dtype:
        """The dtype that holds a code."""
        return torch.float8_e4m3fn

    def nearest_(self, ratio: Tensor) -> Tensor:
        """The nearest codes (half to even); clamped first, for beyond 464 the cast of some devices gives NaN."""
        return ratio.clamp_(-self.largest, self.largest).to(self.storage).to(ratio.dtype)

    def clamped(self, ratio: Tensor, _: Tensor) -> Tensor:
        """Where ``ratio`` lies beyond the largest code."""
        return ratio.abs() > self.largest


Grid = IntegerGrid | Float8Grid | NvFloat4Grid | MxFloat4Grid


def largest_code(bits: int) -> int:
    """q_max = 2^(bits − 1) − 1: 7 for int4, whose smallest code is −8."""
    return (1 << (bits - 1)) - 1


_GRIDS: Final[dict[NumberFormat, Grid]] = {
    **{each: IntegerGrid(each.bits) for each in NumberFormat if each.bits is not None and not each.is_float},
    NumberFormat.FP8: Float8Grid(),
    NumberFormat.NVFP4: NvFloat4Grid(),
    NumberFormat.MXFP4: MxFloat4Grid(),
}


def grid_of(number_format: NumberFormat) -> Grid | None:
    """The grid of a format; None for ``none``, which has no codes."""
    return _GRIDS.get(number_format)
