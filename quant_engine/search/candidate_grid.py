"""The candidates of a grid search, and the scores of one site.

The grid is (α, q) ∪ (α, L2): families N1 to N3 of arXiv 2606.09927, and additionally the L2 policy. E is measured on
validation tokens.
"""

from dataclasses import dataclass
from typing import Final

from quant_engine.policy import GridSearch, Statistic, Transform

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
    """Every policy of the grid, with all other fields of ``transform``; q = 1 is absmax."""
    statistics = [Statistic(kind="quantile", q=q) if q < 1.0 else BASELINE_STATISTIC for q in search.q]
    statistics += [Statistic(kind="l2")] if search.l2 else []
    statistics += [Statistic(kind="lp", p=p) for p in search.p]
    # ``dict.fromkeys`` removes duplicates without changing the order, by which ties are broken.
    return tuple(
        transform.model_copy(update={"alpha": alpha, "statistic": statistic})
        for statistic in dict.fromkeys(statistics)
        for alpha in dict.fromkeys(search.alpha)
    )


def baseline_transform(transform: Transform) -> Transform:
    """``transform`` with the baseline scales: SmoothRot(0.5, max), or SmoothQuant for kind ``smooth``."""
    return transform.model_copy(update={"alpha": BASELINE_ALPHA, "statistic": BASELINE_STATISTIC})
