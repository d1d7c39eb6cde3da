"""Collect exact channel statistics and a sample of tokens in one pass over a site's tokens, in bounded memory.

Shapes: T tokens of a batch, D features, P statistic channels (P < D where heads are tied), K tail length, N tokens.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

from quant_engine.transforms import ChannelStatistics

MASSIVE_RATIO: Final = 8.0
"""A token is massive when its largest value is more than this many times the median token's largest value."""


class TailQuantiles:
    """Exact high quantiles of |x| for every channel, computed from the largest values alone.

    The K largest values determine Q_q as ``torch.quantile`` interpolates it (linear, positions in fp32), because its
    two neighbors are among them. Memory is K · P for any number of tokens.

    Args:
        quantiles: every q to compute, in (0, 1].
        tokens: how many values each channel will get.
        channels: P.
    """

    def __init__(self, quantiles: Iterable[float], *, tokens: int, channels: int, device: torch.device) -> None:
        self.tokens = tokens
        self.ranks = {q: torch.tensor(q, dtype=torch.float32) * (tokens - 1) for q in quantiles}
        # The smallest q reaches deepest into the sorted values and decides how many have to be held.
        deepest = min((int(rank) for rank in self.ranks.values()), default=tokens)
        self.length = tokens - deepest
        # −1 is below every |x|, so the first values replace it.
        self._tail_PK = torch.full((channels, self.length), -1.0, device=device)

    def add(self, magnitude_TP: Tensor) -> None:
        """Add a batch of |x|."""
        if self.length:
            both = torch.cat([self._tail_PK, magnitude_TP.T], dim=1)
            self._tail_PK = both.topk(self.length, dim=1, sorted=False).values

    def result(self) -> dict[float, Tensor]:
        """Return Q_q [P] for each q."""
        ascending_PK = self._tail_PK.sort(dim=1).values
        offset = self.tokens - self.length  # rank of the tail's first value
        found = {}
        for q, rank in self.ranks.items():
            below = int(rank)
            above = min(below + 1, self.tokens - 1)
            weight = (rank - below).to(ascending_PK)
            found[q] = torch.lerp(ascending_PK[:, below - offset], ascending_PK[:, above - offset], weight)
        return found


class ChannelMoments:
    """The absmax, L2 and L_p norms of every channel, and the kurtosis of all values, from power sums in fp64."""

    def __init__(self, channels: int, device: torch.device, norms: Sequence[float] = ()) -> None:
        self._norm_powers = {p: torch.zeros(channels, dtype=torch.float64, device=device) for p in norms}
        self._absmax_P = torch.zeros(channels, device=device)
        self._squares_P = torch.zeros(channels, dtype=torch.float64, device=device)
        self._powers = torch.zeros(4, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, x_TP: Tensor, magnitude_TP: Tensor) -> None:
        """Add a batch."""
        square_TP = x_TP.square()
        self._absmax_P = torch.maximum(self._absmax_P, magnitude_TP.amax(dim=0))
        squares_P = square_TP.sum(dim=0, dtype=torch.float64)
        self._squares_P += squares_P
        # Σ x, Σ x², Σ x³, Σ x⁴. The dot products need no tensor of the cubes and of the fourth powers.
        self._powers += torch.stack(
            [
                x_TP.sum(dtype=torch.float64),
                squares_P.sum(),
                torch.dot(square_TP.flatten(), x_TP.flatten()).double(),
                torch.dot(square_TP.flatten(), square_TP.flatten()).double(),
            ]
        )
        for p, sums_P in self._norm_powers.items():
            sums_P += magnitude_TP.double().pow(p).sum(dim=0)
        self._count += x_TP.numel()

    @property
    def absmax(self) -> Tensor:
        """max |x| of each channel [P]."""
        return self._absmax_P

    @property
    def l2(self) -> Tensor:
        """‖x‖₂ of each channel [P], fp32."""
        return self._squares_P.sqrt().float()

    @property
    def norms(self) -> dict[float, Tensor]:
        """p → ‖x‖_p of each channel [P], fp32."""
        return {p: sums_P.pow(1.0 / p).float() for p, sums_P in self._norm_powers.items()}

    @property
    def kurtosis(self) -> float:
        """E[(x−μ)⁴] / σ⁴ over all values; 3 for a normal distribution, 0 for a constant."""
        # The central moments follow from the raw ones, so one pass is enough.
        m1, m2, m3, m4 = (self._powers / self._count).tolist()
        variance = m2 - m1**2
        if variance <= 0.0:
            return 0.0
        return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2)


class TokenReservoir:
    """Up to ``capacity`` tokens of a stream whose length is known: a uniform sample that includes the massive ones.

    A token is massive by :data:`MASSIVE_RATIO`. The (capacity / 8) tokens with the largest values are held separately;
    those that are massive at the end replace the last ones of the uniform sample. If more tokens than that are massive,
    they are common, and the uniform sample contains them. The choice depends on ``seed``, the counts and the values,
    not on how the stream is cut into batches.

    Args:
        firsts: the numbers of the tokens at the first position of a window. The sample holds one of them at least: many
            models have their massive activations there, and errors on a sample without it say nothing about them.
    """

    def __init__(
        self, *, tokens: int, features: int, capacity: int, seed: int, keep_massive: bool, firsts: Tensor | None = None
    ) -> None:
        self.tokens = tokens
        self.size = min(tokens, capacity)
        # The sample is drawn before the first token is seen, so that no token has to be held for a later draw.
        order_N = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
        if firsts is not None:
            order_N = _with_one_of(firsts, order_N, self.size)
        self._slot_N = torch.full((tokens,), -1)
        self._slot_N[order_N[: self.size]] = torch.arange(self.size)
        self._rows = torch.empty(self.size, features)
        self._index = order_N[: self.size].clone()
        # Where all tokens fit, none can be missed.
        aside = capacity // 8 if keep_massive and tokens > capacity else 0
        self._aside_rows = torch.empty(aside, features)
        self._aside_index = torch.full((aside,), -1)
        self._aside_peak = torch.full((aside,), -1.0)
        self._peaks: list[Tensor] = []

    def add(self, x_TD: Tensor, first: int) -> None:
        """Add a batch of tokens on the CPU, numbered from ``first``."""
        slots = self._slot_N[first : first + len(x_TD)]
        taken = (slots >= 0).nonzero().flatten()
        self._rows[slots[taken]] = x_TD[taken]
        if not len(self._aside_peak):
            return
        peak_T = x_TD.abs().amax(dim=1)
        self._peaks.append(peak_T)
        peaks = torch.cat([self._aside_peak, peak_T])
        # Ties go to the earlier token, so the cut into batches does not matter.
        held = len(self._aside_peak)
        best = peaks.sort(descending=True, stable=True).indices[:held]
        old, new = best[best < held], best[best >= held]
        self._aside_rows = torch.cat([self._aside_rows[old], x_TD[new - held]])
        self._aside_index = torch.cat([self._aside_index[old], first + new - held])
        self._aside_peak = torch.cat([peaks[old], peaks[new]])

    def result(self) -> Tensor:
        """Return the sampled tokens [≤ capacity, D] in the order of the stream."""
        if len(self._aside_peak):
            self._admit_massive()
        return self._rows[self._index.sort().indices]

    def _admit_massive(self) -> None:
        # The median is known only now, at the end of the stream.
        median = torch.cat(self._peaks).median()
        massive = self._aside_peak > MASSIVE_RATIO * median
        missing = massive & (self._slot_N[self._aside_index] < 0)
        admitted = missing.nonzero().flatten()
        # A massive token that the uniform sample has already must not be replaced by another one.
        kept_massive = torch.isin(self._index, self._aside_index[massive])
        replaceable = (~kept_massive).nonzero().flatten()
        slots = replaceable[len(replaceable) - len(admitted) :]
        self._rows[slots] = self._aside_rows[admitted]
        self._index[slots] = self._aside_index[admitted]


def _with_one_of(firsts: Tensor, order_N: Tensor, size: int) -> Tensor:
    """``order_N`` with one of ``firsts`` among its first ``size``. A draw that has one, as nearly all do, stays."""
    if not size or not len(firsts) or bool(torch.isin(order_N[:size], firsts).any()):
        return order_N
    # To the first place, because massive tokens replace the last ones.
    at = int(torch.isin(order_N, firsts).nonzero()[0])
    changed_N = order_N.clone()
    changed_N[0], changed_N[at] = order_N[at], order_N[0]
    return changed_N


def channel_statistics(moments: ChannelMoments, quantiles: TailQuantiles) -> ChannelStatistics:
    """Return the statistics that scale policies read, on the CPU."""
    return ChannelStatistics(
        absmax_D=moments.absmax.cpu(),
        l2_D=moments.l2.cpu(),
        quantiles={q: value.cpu() for q, value in quantiles.result().items()},
        norms={p: value.cpu() for p, value in moments.norms.items()},
        tokens=quantiles.tokens,
    )
