"""The grid of each number format: its codes, and the nearest code to a value in units of the scale."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.grids.float4 import MxFloat4Grid, NvFloat4Grid
from quant_engine.grids.grid import FreeScale, Grid
from quant_engine.online.grid import largest_code, nearest_integers_
from quant_engine.policy import NumberFormat


@dataclass(frozen=True)
class IntegerGrid(FreeScale):
    """The integers of ``bits`` bits, −2^(bits−1) … 2^(bits−1) − 1. The scale maps absmax to the largest of them."""

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
        """Replace ``ratio`` by the nearest codes (half to even), as floating-point numbers, and return it."""
        return nearest_integers_(ratio, self.bits)

    def clamped(self, ratio: Tensor, codes: Tensor) -> Tensor:
        """Return where ``ratio`` is more than half a step beyond the last code."""
        return (codes - ratio).abs_() > 0.5


@dataclass(frozen=True)
class Float8Grid(FreeScale):
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
        """Return the nearest codes (half to even), as floating-point numbers."""
        # Clamped first, because the cast of some devices gives NaN beyond 464.
        return ratio.clamp_(-self.largest, self.largest).to(self.storage).to(ratio.dtype)

    def clamped(self, ratio: Tensor, _: Tensor) -> Tensor:
        """Return where ``ratio`` is beyond the largest code."""
        return ratio.abs() > self.largest


_FLOAT_GRIDS: Final[Mapping[NumberFormat, Grid]] = {
    NumberFormat.FP8: Float8Grid(),
    NumberFormat.NVFP4: NvFloat4Grid(),
    NumberFormat.MXFP4: MxFloat4Grid(),
}


def joined_grids(formats: Iterable[NumberFormat], float_grids: Mapping[NumberFormat, Grid]) -> dict[NumberFormat, Grid]:
    """Return the grid of every format that quantizes: integers by their width, other formats from ``float_grids``.

    Raises:
        ValueError: a floating-point format has no grid, or a grid whose codes or scales contradict its row.
    """
    found: dict[NumberFormat, Grid] = {}
    for each in formats:
        bits = each.bits
        if bits is None:
            continue
        # A row and its grid are in two modules, because rows need no torch. So they are compared here.
        if each.is_float and each not in float_grids:
            raise ValueError(f"number format {each.value} has a row but no grid")
        grid = found[each] = float_grids[each] if each.is_float else IntegerGrid(bits)
        if (grid.bits, grid.storage.is_floating_point) != (bits, each.is_float):
            raise ValueError(f"number format {each.value} has {bits} bits, but its grid {grid.bits} in {grid.storage}")
        if (grid.scale_storage is None) != (each.group_size is None):
            raise ValueError(
                f"number format {each.value} has groups of {each.group_size}, but its grid stores scales in "
                f"{grid.scale_storage}"
            )
    return found


# A format without a grid fails here, at import, before anything is computed.
_GRIDS: Final = joined_grids(NumberFormat, _FLOAT_GRIDS)


def grid_of(number_format: NumberFormat) -> Grid | None:
    """Return the grid of a format; None for ``none``, which has no codes.

    Raises:
        KeyError: the format quantizes, but has no grid.
    """
    return _GRIDS[number_format] if number_format.quantizes else None


def export_dtype(number_format: NumberFormat) -> torch.dtype | None:
    """Return the only type to which readers of a checkpoint unpack the format's weights; None for the model's type."""
    name = number_format.spec.export_dtype
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype
