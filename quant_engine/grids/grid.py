"""What a number format's grid has to offer, and what the grids with free scales have in common.

Shapes: R groups, G values in each.
"""

from typing import Protocol, Self

import torch
from torch import Tensor


class Grid(Protocol):
    """The codes of a number format and its scales. One for each format: :mod:`quant_engine.grids.formats`."""

    @property
    def bits(self) -> int:
        """Width of a code."""

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""

    @property
    def saturates(self) -> bool:
        """Whether a rounded scale may leave values beyond the last code although nothing is clipped."""

    @property
    def storage(self) -> torch.dtype:
        """The dtype that holds a code."""

    @property
    def scale_storage(self) -> torch.dtype | None:
        """The dtype of a stored scale, where the format has one of its own; None for that of the dense tensors."""

    @property
    def global_scale(self) -> Tensor | None:
        """The fp32 scale [1] of the whole tensor, once the grid is fitted to it; None for a grid that has none."""

    def fitted(self, v_RG: Tensor, peak: Tensor | None = None, /) -> "Grid":
        """The grid with its scale of the tensor fixed: by ``peak``, or else by the largest absolute value."""

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor, /) -> Tensor:
        """The scale a [R, 1] of rows whose largest absolute value is ``absmax_R1``."""

    def nearest_(self, ratio: Tensor, /) -> Tensor:
        """The nearest codes as floating-point numbers; may overwrite ``ratio``, the values over their scale."""

    def clamped(self, ratio: Tensor, codes: Tensor, /) -> Tensor:
        """Where ``ratio`` lies beyond the last code."""

    def stored_scale(self, scale: Tensor, /) -> Tensor:
        """Scales of :meth:`step` as :attr:`scale_storage` holds them; unchanged where that is None."""


class FreeScale:
    """Scales are any number: a = ρ absmax / q_max, and 1 for zeros (or values so small that a would vanish)."""

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""
        raise NotImplementedError

    @property
    def saturates(self) -> bool:
        """No: the scale is not rounded."""
        return False

    @property
    def scale_storage(self) -> torch.dtype | None:
        """The dtype of the dense tensors."""
        return None

    @property
    def global_scale(self) -> Tensor | None:
        """There is none."""
        return None

    def fitted(self, _v_RG: Tensor, _peak: Tensor | None = None) -> Self:
        """The same: a row's scale depends on nothing else."""
        return self

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor) -> Tensor:
        """a [R, 1]."""
        scale_R1 = absmax_R1 * (clip_ratio / self.largest)
        return torch.where(scale_R1 > 0, scale_R1, torch.ones_like(scale_R1))

    def stored_scale(self, scale: Tensor) -> Tensor:
        """The same."""
        return scale
