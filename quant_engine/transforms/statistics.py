"""Channel statistics of abs(X), from which scale policies are computed. Shapes: T tokens, D channels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
