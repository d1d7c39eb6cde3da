"""Choose a scale policy from tables of scores.

The functions are pure, so tables may come from any process in any order.

The guard: a policy is never accepted on a layer where its validation error is above that of the layer's baseline
SmoothRot(0.5, max). Quantile policies need it: at q = 0.99 one layer of SmolLM2-135M has 30,000 times its error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quant_engine.search.candidate_grid import SiteScores


@dataclass(frozen=True, kw_only=True)
class SharedChoice:
    """One policy for all layers.

    Attributes:
        index: the place of the candidate.
        mean_error: the mean E over the judging layers with the guard, which ``index`` minimizes.
        unguarded_means: the mean E of every candidate over the judging layers without the guard, for the report.
    """

    index: int
    mean_error: float
    unguarded_means: tuple[float, ...]


def search_shared(tables: Mapping[str, SiteScores], judges: Iterable[str]) -> SharedChoice:
    """Choose the candidate with the lowest mean guarded error over the layers ``judges``; of equals, the first.

    Raises:
        ValueError: ``judges`` is empty, or tables differ in length.
    """
    rows = [tables[name] for name in judges]
    if not rows:
        raise ValueError("a shared policy needs at least one layer to be judged on")
    # A layer that refuses a candidate stays at its baseline, so its error counts as that of the baseline.
    guarded = [tuple(min(error, row.baseline) for error in row.errors) for row in rows]
    means = _column_means(guarded)
    index = min(range(len(means)), key=means.__getitem__)
    return SharedChoice(
        index=index, mean_error=means[index], unguarded_means=_column_means([row.errors for row in rows])
    )


def search_layer(scores: SiteScores) -> int | None:
    """The layer's own best candidate; None if no candidate is as good as the baseline."""
    return guarded(min(range(len(scores.errors)), key=scores.errors.__getitem__), scores)


def guarded(index: int, scores: SiteScores) -> int | None:
    """``index`` if the guard accepts that candidate on the layer; None if the layer stays at its baseline."""
    return index if scores.errors[index] <= scores.baseline else None


def _column_means(rows: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))
