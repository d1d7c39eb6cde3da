"""Draw the rows of a training step with unequal probabilities, so that the sum over all rows is unbiased.

Massive tokens carry much of a layer's error (half of it in 52 of 6,528 tokens, SmolLM2-135M block 11), and most uniform
minibatches would miss them. Rows are drawn with a probability π that grows with the error that they carry, some with
certainty, and weighted by 1/π (Horvitz and Thompson, 1952). All computation is on the CPU. Shapes: N rows, n drawn.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_UNIFORM_SHARE: Final = 0.5
"""The share of the draw that ignores the error, so that no weight exceeds N / (n · share)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """``index`` [n] of rows without repetition, and ``weight`` [n] = 1/π with E[Σ weight · f] = Σ_N f."""

    index: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Draw":
        """The same draw on another device."""
        return Draw(index=self.index.to(device), weight=self.weight.to(device))


def inclusion_probabilities(error_N: Tensor, count: int) -> Tensor:
    """π in (0, 1] of every row, float64 [N], with the sum min(count, N).

    Args:
        error_N: the squared error that each row carries, ≥ 0.
        count: the number of rows to draw; N or more takes every row with certainty.
    """
    rows = error_N.shape[0]
    if count >= rows:
        return torch.ones(rows, dtype=torch.float64)
    error_N = error_N.double().cpu()
    uniform_N = torch.full_like(error_N, 1.0 / rows)
    share_N = torch.lerp(error_N / error_N.sum().clamp(min=torch.finfo(torch.float64).tiny), uniform_N, _UNIFORM_SHARE)
    certain_N = torch.zeros(rows, dtype=torch.bool)
    # A row whose π would exceed 1 is taken with certainty. That raises the π of the others, so the check is repeated.
    while True:
        left = count - int(certain_N.sum())
        chance_N = torch.where(certain_N, 1.0, share_N * left / share_N[~certain_N].sum())
        if not bool((chance_N > 1.0).any()):
            return chance_N
        certain_N |= chance_N >= 1.0


def systematic_draw(chance_N: Tensor, generator: torch.Generator) -> Draw:
    """Draw a sample in which row t appears at most once, with probability exactly ``chance_N[t]``.

    This is systematic sampling: there are marks at a distance of 1 from one random offset on, and a row is drawn if its
    interval of the cumulative sum contains a mark. The sample is spread over the rows in their order, hence over the
    windows that the tokens come from.
    """
    edge_N = chance_N.cumsum(0)
    count = round(float(edge_N[-1]))
    marks = torch.arange(count, dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)
    # Rounding may put the last mark at the end of the last interval; the clamp returns it to the last row.
    index = torch.searchsorted(edge_N, marks, right=True).clamp_(max=chance_N.shape[0] - 1)
    return Draw(index=index, weight=(1.0 / chance_N[index]).float())
