"""The interface of a number format's grid, and the base class of grids whose scales are not rounded.

Shapes: R groups, G values in each.
"""

from typing import Protocol, Self

import torch
from torch import Tensor

from quant_engine.online.grid import row_scale


class Grid(Protocol):
    """The codes and the scales of a number format. Each format has one grid: :mod:`quant_engine.grids.formats`."""

    @property
    def bits(self) -> int:
        """Width of a code."""

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""

    @property
    def saturates(self) -> bool:
        """Whether a rounded scale may leave values beyond the last code even without a clip."""

    @property
    def storage(self) -> torch.dtype:
        """The dtype that holds a code."""

    @property
    def scale_storage(self) -> torch.dtype | None:
        """The dtype of a stored scale, where the format defines one; None for that of the dense tensors."""

    @property
    def global_scale(self) -> Tensor | None:
        """The fp32 scale [1] of the whole tensor, after the grid is fitted to it; None for a grid without one."""

    def fitted(self, v_RG: Tensor, peak: Tensor | None = None, /) -> "Grid":
        """Return the grid with its tensor scale computed from ``peak``, or else from the largest absolute value."""

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor, /) -> Tensor:
        """Return the scale a [R, 1] of rows whose largest absolute value is ``absmax_R1``."""

    def nearest_(self, ratio: Tensor, /) -> Tensor:
        """Return the nearest codes as floating-point numbers.

        May overwrite ``ratio``, the values divided by their scale.
        """

    def clamped(self, ratio: Tensor, codes: Tensor, /) -> Tensor:
        """Return where ``ratio`` is beyond the last code."""

    def stored_scale(self, scale: Tensor, /) -> Tensor:
        """Return scales of :meth:`step` in :attr:`scale_storage`; unchanged where that is None."""


class FreeScale:
    """Base of grids whose scales are not rounded: a = ρ absmax / q_max, and 1 where this is zero."""

    @property
    def largest(self) -> int:
        """q_max, the code of a row's largest absolute value."""
        raise NotImplementedError

    @property
    def saturates(self) -> bool:
        """False: the scale is not rounded."""
        return False

    @property
    def scale_storage(self) -> torch.dtype | None:
        """None: a scale has the dtype of the dense tensors."""
        return None

    @property
    def global_scale(self) -> Tensor | None:
        """None: there is no scale of the whole tensor."""
        return None

    def fitted(self, _v_RG: Tensor, _peak: Tensor | None = None) -> Self:
        """Return the grid unchanged, because a row's scale depends on that row alone."""
        return self

    def step(self, absmax_R1: Tensor, clip_ratio: float | Tensor) -> Tensor:
        """Return a [R, 1]."""
        return row_scale(absmax_R1, self.largest, clip_ratio)

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Return ``scale`` unchanged."""
        return scale
