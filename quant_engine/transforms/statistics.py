"""Channel statistics of abs(X): what every scale policy is made of. Shapes: T tokens, D channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelStatistics:
    """Per-channel statistics of abs(X) over ``tokens`` tokens, float32 [D].

    Attributes:
        absmax_D: the largest value.
        l2_D: ‖X_j‖₂ over all tokens.
        quantiles: q → Q_q(abs(X_j)), interpolated linearly between order statistics.
        norms: p → ‖X_j‖_p over all tokens.
    """

    absmax_D: Tensor
    l2_D: Tensor
    quantiles: Mapping[float, Tensor] = field(default_factory=dict)
    norms: Mapping[float, Tensor] = field(default_factory=dict)
    tokens: int


def channel_statistics(x_TD: Tensor, quantiles: Sequence[float] = (), norms: Sequence[float] = ()) -> ChannelStatistics:
    """Exact statistics of tokens that fit into memory."""
    return ChannelStatistics(
        absmax_D=x_TD.abs().amax(dim=0).float(),
        l2_D=torch.linalg.vector_norm(x_TD, dim=0, dtype=torch.float64).float(),
        quantiles={q: abs_quantile(x_TD, q).float() for q in quantiles},
        norms={p: torch.linalg.vector_norm(x_TD, ord=p, dim=0, dtype=torch.float64).float() for p in norms},
        tokens=x_TD.shape[0],
    )


def abs_quantile(x_TD: Tensor, q: float) -> Tensor:
    """Exact Q_q(abs(X_j)) [D], from the few largest values of each channel; ``q`` in [0, 1].

    Linear interpolation at position q (T − 1), as numpy and torch define it by default.
    """
    tokens = x_TD.shape[0]
    position = q * (tokens - 1)
    below = int(position)
    largest_KD = x_TD.abs().topk(tokens - below, dim=0).values
    low_D, high_D = largest_KD[-1], largest_KD[-2] if tokens - below > 1 else largest_KD[-1]
    return torch.lerp(low_D, high_D, position - below)
