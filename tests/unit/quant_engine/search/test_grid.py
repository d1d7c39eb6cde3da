"""The grid's candidates, and a site's scores of them."""

import pytest
import torch

from quant_engine.evaluation.layer_errors import layer_errors
from quant_engine.policy import (
    ActivationQuantization,
    GridSearch,
    Statistic,
    Transform,
    TransformKind,
    WeightQuantization,
)
from quant_engine.search import baseline_transform, candidate_transforms, search_site
from quant_engine.transforms import build_plan, channel_statistics
from tests.unit.quant_engine.outliers import massive_input, weight

INT4, TOKEN4 = WeightQuantization(), ActivationQuantization()
GRID = GridSearch(alpha=(0.4, 0.5), q=(0.9, 1.0), l2=True)


def test_candidates_are_every_pair_and_l2() -> None:
    found = [(each.alpha, each.statistic.kind, each.statistic.q) for each in candidate_transforms(GRID, Transform())]
    assert sorted(found) == [
        (0.4, "absmax", 1.0), (0.4, "l2", 1.0), (0.4, "quantile", 0.9),
        (0.5, "absmax", 1.0), (0.5, "l2", 1.0), (0.5, "quantile", 0.9),
    ]  # fmt: skip


def test_candidates_keep_kind_and_block_and_are_distinct() -> None:
    transform = Transform(kind=TransformKind.SMOOTH, block_size=32, alpha=0.9)
    search = GridSearch(alpha=(0.5, 0.5), q=(1.0, 1.0))
    assert candidate_transforms(search, transform) == (
        Transform(kind=TransformKind.SMOOTH, block_size=32, alpha=0.5, statistic=Statistic(kind="absmax")),
    )
    assert len(candidate_transforms(GridSearch(q=(), l2=True), transform)) == 1
    assert candidate_transforms(GridSearch(q=(), l2=False), transform) == ()


def test_baseline_is_smoothrot() -> None:
    tuned = Transform(alpha=0.7, statistic=Statistic(kind="l2"), block_size=32)
    assert baseline_transform(tuned) == Transform(block_size=32)


def test_scores_are_the_layer_errors_of_each_policy() -> None:
    x_TI, w_OI = massive_input(100, 96), weight(24, 96)
    stats = channel_statistics(x_TI, (0.9,))
    scores = search_site(x_TI, [w_OI[:8], w_OI[8:]], w_OI, stats, GRID, Transform(), INT4, TOKEN4)

    def error(transform: Transform) -> float:
        return layer_errors(x_TI, w_OI, build_plan(transform, stats, w_OI), INT4, TOKEN4).error

    assert scores.baseline == pytest.approx(error(Transform()), rel=1e-5)
    assert scores.errors == pytest.approx([error(each) for each in candidate_transforms(GRID, Transform())], rel=1e-5)


def test_a_quantile_that_was_not_recorded_is_an_error() -> None:
    x_TI, w_OI = massive_input(10, 96), weight(4, 96)
    with pytest.raises(KeyError, match=r"0\.9"):
        search_site(x_TI, [w_OI], w_OI, channel_statistics(x_TI), GRID, Transform(), INT4, TOKEN4)


def test_a_careless_quantile_falls_off_the_cliff() -> None:
    """The massive token is beyond a low quantile, so that policy is far worse than the baseline: the guard's reason."""
    x_TI, w_OI = torch.randn(400, 96, generator=torch.Generator().manual_seed(0)), weight(24, 96)
    x_TI[:3, 5] = 3157.0
    search = GridSearch(alpha=(0.5,), q=(0.9,))
    stats = channel_statistics(x_TI, (0.9,))
    scores = search_site(x_TI, [w_OI], w_OI, stats, search, Transform(), INT4, TOKEN4)
    assert scores.errors[0] > 3 * scores.baseline
