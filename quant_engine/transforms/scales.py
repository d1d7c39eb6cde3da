"""Scale policies, one family: s_j = stat_X(j)^α / stat_W(j)^(1−α).

absmax and α = 0.5 is SmoothQuant's and SmoothRot's rule; quantile replaces stat_X by a high quantile
(arXiv 2606.09927, quantile-robust scales); l2 takes ‖X_j‖₂ and ‖W_j‖₂. Shapes: D channels, O outputs.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.hadamard import hadamard_order
from quant_engine.policy import Statistic, Transform
from quant_engine.transforms.plan import SitePlan
from quant_engine.transforms.statistics import ChannelStatistics

SMALLEST_SCALE: Final = 1e-5
"""Lower clamp of s, and of stat_W, so that a dead channel stays finite."""


def scale_policy(stats: ChannelStatistics, w_OD: Tensor, alpha: float, statistic: Statistic) -> Tensor:
    """s, float32 [D].

    Args:
        stats: of the site's activations.
        w_OD: the rows of every linear that reads the site.
        alpha: the migration strength α in [0, 1].
        statistic: which statistic; ``quantile`` at q = 1 is the maximum.

    Raises:
        KeyError: ``stats`` holds no quantile at the statistic's q.
        NumericalInstability: a statistic is not finite.
    """
    activation_D, weight_D = _STATISTICS[statistic.kind](stats, w_OD, statistic.q)
    weight_D = weight_D.double().clamp(min=SMALLEST_SCALE)
    scales_D = (activation_D.to(weight_D) ** alpha / weight_D ** (1.0 - alpha)).clamp(min=SMALLEST_SCALE).float()
    broken = int((~torch.isfinite(scales_D)).sum())
    if broken:
        raise NumericalInstability(
            detail=f"The {statistic.kind} statistic of {broken} channels is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    return scales_D


def build_plan(transform: Transform, stats: ChannelStatistics, w_OD: Tensor) -> SitePlan:
    """The plan of a policy's ``transform`` for a site.

    Raises:
        UnsupportedPolicy: ``block_size`` does not fit the site's width.
        KeyError, NumericalInstability: as :func:`scale_policy`.
    """
    order = hadamard_order(w_OD.shape[-1], transform.block_size) if transform.kind.rotates else None
    if not transform.kind.scales_channels:
        return SitePlan(kind=transform.kind, order=order)
    return SitePlan(
        kind=transform.kind,
        alpha=transform.alpha,
        statistic=transform.statistic,
        label=transform.statistic.kind,
        scales_D=scale_policy(stats, w_OD, transform.alpha, transform.statistic),
        order=order,
    )


def _absmax(stats: ChannelStatistics, w_OD: Tensor, _: float) -> tuple[Tensor, Tensor]:
    return stats.absmax_D, w_OD.abs().amax(dim=0)


def _quantile(stats: ChannelStatistics, w_OD: Tensor, q: float) -> tuple[Tensor, Tensor]:
    if q == 1.0:
        return _absmax(stats, w_OD, q)
    if q not in stats.quantiles:
        known = ", ".join(str(each) for each in sorted(stats.quantiles)) or "none"
        raise KeyError(f"the channel statistics hold no quantile q = {q}; they hold {known}")
    return stats.quantiles[q], w_OD.abs().amax(dim=0)


def _l2(stats: ChannelStatistics, w_OD: Tensor, _: float) -> tuple[Tensor, Tensor]:
    return stats.l2_D, torch.linalg.vector_norm(w_OD, dim=0)


_STATISTICS: Final[dict[str, Callable[[ChannelStatistics, Tensor, float], tuple[Tensor, Tensor]]]] = {
    "absmax": _absmax,
    "quantile": _quantile,
    "l2": _l2,
}
