"""Find the ratio by which each row's scale has to shrink for the smallest squared rounding error.

Shapes: R rows that share a scale each, G values in each.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from quant_engine.grids.grid import Grid
from quant_engine.grids.straight_through import row_codes, row_scales

_COARSE_STEP: Final = 0.05
_COARSE: Final = tuple(1.0 - _COARSE_STEP * step for step in range(19))
"""Ratios from 1 to 0.1. The range is wide because two bits on normally distributed values are best near a third."""
_FINE: Final = tuple(0.2 * _COARSE_STEP * step for step in (4, 3, 2, 1, -1, -2, -3, -4))
"""Offsets to the best coarse ratio, in steps of 0.01."""
_CHUNK_VALUES: Final = 1 << 18
"""Values that are processed together: few enough for a cache to hold, many enough to keep a device busy."""


Rounded = Callable[[Tensor, Tensor], Tensor]
"""Returns the rounded rows q [R, G] of rows v and their ratios ρ [R, 1], in a new tensor."""


def mse_clip_ratio(v_RG: Tensor, *, rounded: Rounded, weight_RG: Tensor | None = None) -> Tensor:
    """Return ρ [R, 1] in [0.06, 1] that minimizes Σ_g d_g (q_g − v_g)².

    A coarse grid of ratios is tried, then a fine one around each row's best. On a tie the ratio that was tried first
    stays. The error is not convex in ρ, but nearly so at the coarse step. There is no gradient, because at the optimum
    the error does not change with ρ.

    Args:
        rounded: the rounding; :func:`rounded_on` is that of a symmetric grid.
        weight_RG: d ≥ 0, for instance the diagonal of a Hessian; None for ones.
    """
    rows = max(1, _CHUNK_VALUES // max(1, v_RG.shape[-1]))
    with torch.no_grad():
        weights = [None] * -(-v_RG.shape[0] // rows) if weight_RG is None else torch.split(weight_RG, rows)
        found = [_chunk_ratio(v_rG, rounded, d_rG) for v_rG, d_rG in zip(torch.split(v_RG, rows), weights, strict=True)]
        return torch.cat(found)


def rounded_on(grid: Grid) -> Rounded:
    """Return the rounding to a symmetric grid."""

    def rounded(v_RG: Tensor, ratio_R1: Tensor) -> Tensor:
        scale_R1 = row_scales(v_RG, grid=grid, clip_ratio=ratio_R1)
        return row_codes(v_RG, scale_R1, grid=grid).mul_(scale_R1)

    return rounded


def _chunk_ratio(v_RG: Tensor, rounded: Rounded, weight_RG: Tensor | None) -> Tensor:
    best_R1 = torch.ones_like(v_RG[:, :1])
    least_R1 = torch.full_like(best_R1, torch.inf)
    for ratio in _COARSE:
        least_R1, best_R1 = _better(v_RG, rounded, weight_RG, torch.full_like(best_R1, ratio), least_R1, best_R1)
    # The center of the fine grid stays the best coarse ratio while better ones are found.
    middle_R1 = best_R1
    for offset in _FINE:
        ratio_R1 = (middle_R1 + offset).clamp_(max=1.0)
        least_R1, best_R1 = _better(v_RG, rounded, weight_RG, ratio_R1, least_R1, best_R1)
    return best_R1


def _better(
    v_RG: Tensor, rounded: Rounded, weight_RG: Tensor | None, ratio_R1: Tensor, least_R1: Tensor, best_R1: Tensor
) -> tuple[Tensor, Tensor]:
    """Try ``ratio_R1``, and return the least error so far and its ratio."""
    # In place: the tensor is new, and there are 27 tries.
    error_RG = rounded(v_RG, ratio_R1).sub_(v_RG)
    weighted_RG = error_RG if weight_RG is None else error_RG * weight_RG
    error_R1 = torch.linalg.vecdot(weighted_RG, error_RG).unsqueeze(-1)
    return torch.minimum(error_R1, least_R1), torch.where(error_R1 < least_R1, ratio_R1, best_R1)
