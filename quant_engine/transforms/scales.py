"""Scale policies of the form s_j = stat_X(j)^α / stat_W(j)^(1−α).

absmax with α = 0.5 is SmoothQuant's and SmoothRot's rule. quantile replaces stat_X by a high quantile
(arXiv 2606.09927, quantile-robust scales). l2 takes ‖X_j‖₂ and ‖W_j‖₂, lp ‖X_j‖_p and ‖W_j‖_p.

Shapes: D channels, O outputs.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.policy import Statistic
from quant_engine.transforms.statistics import ChannelStatistics

SMALLEST_SCALE: Final = 1e-5
"""The lower bound of s and of stat_W, so that a channel that is always zero gets a finite scale."""


def scale_policy(stats: ChannelStatistics, w_OD: Tensor, alpha: float, statistic: Statistic) -> Tensor:
    """Compute s, float32 [D].

    Args:
        stats: the statistics of the site's activations.
        w_OD: the rows of every linear that reads the site.
        alpha: the migration strength α in [0, 1].
        statistic: which statistic; ``quantile`` at q = 1 is the maximum.

    Raises:
        KeyError: ``stats`` has no quantile at the statistic's q, or no norm at its p.
        NumericalInstability: a statistic is not finite.
    """
    activation_D, weight_D = _STATISTICS[statistic.kind](stats, w_OD, statistic)
    # fp64 for the powers; only the result is rounded to fp32.
    weight_D = weight_D.double().clamp(min=SMALLEST_SCALE)
    scales_D = (activation_D.to(weight_D) ** alpha / weight_D ** (1.0 - alpha)).clamp(min=SMALLEST_SCALE).float()
    broken = int((~torch.isfinite(scales_D)).sum())
    if broken:
        raise NumericalInstability(
            detail=f"The {statistic.kind} statistic of {broken} channels is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    return scales_D


def _absmax(stats: ChannelStatistics, w_OD: Tensor, _: Statistic) -> tuple[Tensor, Tensor]:
    return stats.absmax_D, w_OD.abs().amax(dim=0)


def _quantile(stats: ChannelStatistics, w_OD: Tensor, statistic: Statistic) -> tuple[Tensor, Tensor]:
    if statistic.q == 1.0:
        return _absmax(stats, w_OD, statistic)
    return _kept(stats.quantiles, statistic.q, "quantile q"), w_OD.abs().amax(dim=0)


def _l2(stats: ChannelStatistics, w_OD: Tensor, _: Statistic) -> tuple[Tensor, Tensor]:
    return stats.l2_D, torch.linalg.vector_norm(w_OD, dim=0)


def _lp(stats: ChannelStatistics, w_OD: Tensor, statistic: Statistic) -> tuple[Tensor, Tensor]:
    if statistic.p == 2.0:
        return _l2(stats, w_OD, statistic)
    return _kept(stats.norms, statistic.p, "norm p"), torch.linalg.vector_norm(w_OD, ord=statistic.p, dim=0)


def _kept(found: Mapping[float, Tensor], parameter: float, name: str) -> Tensor:
    if parameter not in found:
        known = ", ".join(str(each) for each in sorted(found)) or "none"
        raise KeyError(f"the channel statistics hold no {name} = {parameter}; they hold {known}")
    return found[parameter]


_STATISTICS: Final[dict[str, Callable[[ChannelStatistics, Tensor, Statistic], tuple[Tensor, Tensor]]]] = {
    "absmax": _absmax,
    "quantile": _quantile,
    "l2": _l2,
    "lp": _lp,
}
