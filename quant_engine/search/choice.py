"""From tables of scores to a choice: pure reductions, so that tables may come from any process in any order.

The guard: a policy is never accepted on a layer where its validation error is above that layer's baseline
SmoothRot(0.5, max). Quantile policies need it: at q = 0.99 one layer of SmolLM2-135M has 30,000 times its error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quant_engine.search.grid import SiteScores


@dataclass(frozen=True, kw_only=True)
class SharedChoice:
    """One policy for all layers.

    Attributes:
        index: of the candidate.
        mean_error: mean E over the judging layers as the guard leaves it, what ``index`` minimises.
        unguarded_means: mean E of every candidate over the judging layers, without the guard: the report's table.
    """

    index: int
    mean_error: float
    unguarded_means: tuple[float, ...]


def search_shared(tables: Mapping[str, SiteScores], judges: Iterable[str]) -> SharedChoice:
    """The candidate with the lowest mean guarded error over the layers named ``judges``; the first of equals.

    Raises:
        ValueError: ``judges`` is empty, or tables differ in length.
    """
    rows = [tables[name] for name in judges]
    if not rows:
        raise ValueError("a shared policy needs at least one layer to be judged on")
    guarded = [tuple(min(error, row.baseline) for error in row.errors) for row in rows]
    means = _column_means(guarded)
    index = min(range(len(means)), key=means.__getitem__)
    return SharedChoice(
        index=index, mean_error=means[index], unguarded_means=_column_means([row.errors for row in rows])
    )


def search_layer(scores: SiteScores) -> int | None:
    """The layer's own best candidate; None where none is as good as the baseline."""
    return guarded(min(range(len(scores.errors)), key=scores.errors.__getitem__), scores)


def guarded(index: int, scores: SiteScores) -> int | None:
    """``index`` if that candidate is accepted on the layer, None where the layer keeps its baseline."""
    return index if scores.errors[index] <= scores.baseline else None


def _column_means(rows: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))
