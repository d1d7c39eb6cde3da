"""The grid's candidates, and a site's scores of them."""

import pytest
import torch

from quant_engine.evaluation.layer_errors import layer_errors, plan_errors
from quant_engine.policy import (
    ActivationQuantization,
    GridSearch,
    Statistic,
    Transform,
    TransformKind,
    WeightQuantization,
)
from quant_engine.search import baseline_transform, candidate_transforms
from quant_engine.transforms import build_plan
from tests.unit.quant_engine.definitions import channel_statistics
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


def test_the_errors_of_many_plans_are_the_layer_errors_of_each() -> None:
    x_TI, w_OI = massive_input(100, 96), weight(24, 96)
    stats = channel_statistics(x_TI, (0.9,))
    plans = [build_plan(each, stats, w_OI) for each in candidate_transforms(GRID, Transform())]
    found = plan_errors(x_TI, [w_OI[:8], w_OI[8:]], plans, INT4, TOKEN4)
    assert found == pytest.approx([layer_errors(x_TI, w_OI, plan, INT4, TOKEN4).error for plan in plans], rel=1e-5)


def test_a_quantile_that_was_not_recorded_is_an_error() -> None:
    x_TI, w_OI = massive_input(10, 96), weight(4, 96)
    with pytest.raises(KeyError, match=r"0\.9"):
        build_plan(candidate_transforms(GRID, Transform())[0], channel_statistics(x_TI), w_OI)


def test_a_careless_quantile_falls_off_the_cliff() -> None:
    """The massive token is beyond a low quantile, so that policy is far worse than the baseline: the guard's reason."""
    x_TI, w_OI = torch.randn(400, 96, generator=torch.Generator().manual_seed(0)), weight(24, 96)
    x_TI[:3, 5] = 3157.0
    stats = channel_statistics(x_TI, (0.9,))
    (careless,) = candidate_transforms(GridSearch(alpha=(0.5,), q=(0.9,)), Transform())
    plans = [build_plan(each, stats, w_OI) for each in (careless, baseline_transform(Transform()))]
    error, baseline = plan_errors(x_TI, [w_OI], plans, INT4, TOKEN4)
    assert error > 3 * baseline
