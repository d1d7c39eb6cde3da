"""The candidates of a grid search and one site's scores of them.

The grid is (α, q) ∪ (α, L2): arXiv 2606.09927, families N1 to N3, and the L2 policy beside them. E is measured on
validation tokens. Shapes: T tokens, I input channels, O output channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from quant_engine.evaluation.layer_errors import plan_errors
from quant_engine.policy import ActivationQuantization, GridSearch, Statistic, Transform, WeightQuantization
from quant_engine.transforms import ChannelStatistics, build_plan

BASELINE_ALPHA: Final = 0.5
BASELINE_STATISTIC: Final = Statistic(kind="absmax")


@dataclass(frozen=True, kw_only=True)
class SiteScores:
    """One site's row of the search table.

    Attributes:
        baseline: E of SmoothRot(0.5, max).
        errors: E of each candidate, in the order of :func:`candidate_transforms`.
    """

    baseline: float
    errors: tuple[float, ...]


def candidate_transforms(search: GridSearch, transform: Transform) -> tuple[Transform, ...]:
    """Every policy of the grid, with the kind and the block size of ``transform``; q = 1 is absmax."""
    statistics = [Statistic(kind="quantile", q=q) if q < 1.0 else BASELINE_STATISTIC for q in search.q]
    statistics += [Statistic(kind="l2")] if search.l2 else []
    return tuple(
        transform.model_copy(update={"alpha": alpha, "statistic": statistic})
        for statistic in dict.fromkeys(statistics)
        for alpha in dict.fromkeys(search.alpha)
    )


def baseline_transform(transform: Transform) -> Transform:
    """SmoothRot(0.5, max), or for a transform of kind ``smooth`` SmoothQuant, with the block size of ``transform``."""
    return transform.model_copy(update={"alpha": BASELINE_ALPHA, "statistic": BASELINE_STATISTIC})


def search_site(
    x_val_TI: Tensor,
    linears: Sequence[Tensor],
    w_OI: Tensor,
    stats: ChannelStatistics,
    search: GridSearch,
    transform: Transform,
    weights: WeightQuantization,
    activations: ActivationQuantization,
) -> SiteScores:
    """Score every candidate, and the baseline, on one site.

    Args:
        x_val_TI: validation tokens; each candidate costs one transform and one product of them.
        linears: the weights that read the site, each rounded by itself.
        w_OI: the rows of all of them, for the scale policies.

    Raises:
        KeyError: ``stats`` lacks a quantile of the grid.
        UnsupportedPolicy, NumericalInstability: as :func:`plan_errors`.
    """
    wanted = (baseline_transform(transform), *candidate_transforms(search, transform))
    plans = [build_plan(each, stats, w_OI) for each in wanted]
    baseline, *errors = plan_errors(x_val_TI, linears, plans, weights, activations)
    return SiteScores(baseline=baseline, errors=tuple(errors))
