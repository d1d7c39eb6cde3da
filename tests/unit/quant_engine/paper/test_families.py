"""What each family tries, in the paper's own numbers, and what may be chosen."""

from itertools import pairwise

import pytest

from quant_engine.paper import (
    BASELINE_POINT,
    Configuration,
    ScalePoint,
    n1_points,
    n2_points,
    n3_points,
    scale_family,
    t1_configurations,
    t2_configurations,
    training_family,
    unit_budget,
)
from quant_engine.policy import PaperExperiment, Statistic, Transform, TransformKind
from tests.unit.quant_engine.paper.reports import BASELINE, EXPERIMENT, flat, small_scales, small_trained


def test_the_grids_are_the_papers() -> None:
    alphas = [point.alpha for point in n1_points(PaperExperiment())]
    assert len(alphas) == 21
    assert (alphas[0], alphas[10], alphas[20]) == (0.25, 0.5, 0.75)
    quantiles = [point.q for point in n2_points(PaperExperiment())]
    assert len(quantiles) == 16
    assert (quantiles[0], quantiles[-1]) == (0.95, 1.0)
    assert any(abs(q - 0.994) < 5e-4 for q in quantiles)
    assert {point.q for point in n1_points(PaperExperiment())} == {1.0}
    assert {point.alpha for point in n2_points(PaperExperiment())} == {0.5}
    rates = [each.learning_rate for each in t1_configurations(PaperExperiment())]
    ratios = [after / before for before, after in pairwise(rates)]
    assert (rates[0], rates[-1], len(rates)) == (5e-3, 2e-2, 5)
    assert ratios == pytest.approx([4**0.25] * 4, rel=1e-3)


def test_a_scale_point_is_a_transform() -> None:
    base = Transform(kind=TransformKind.SMOOTH, block_size=32)
    quantile = ScalePoint(alpha=0.4, q=0.99).transform(base)
    assert (quantile.kind, quantile.block_size, quantile.alpha) == (base.kind, 32, 0.4)
    assert quantile.statistic == Statistic(kind="quantile", q=0.99)
    assert BASELINE_POINT.transform(base).statistic == Statistic(kind="absmax")


def test_n3_crosses_the_best_and_forces_the_maximum_in() -> None:
    points = [ScalePoint(alpha=0.5, q=q) for q in (0.99, 0.995, 0.999, 1.0)]
    n2 = scale_family("N2", {point: flat(1.0 + point.q, 1.0) for point in points}, BASELINE)
    alphas = [ScalePoint(alpha=alpha, q=1.0) for alpha in (0.3, 0.4, 0.5)]
    n1 = scale_family("N1", {point: flat(1.0 + point.alpha, 1.0) for point in alphas}, BASELINE)
    crossed = n3_points(n1, n2, top=2)
    assert {(point.alpha, point.q) for point in crossed} == {(0.3, 0.99), (0.3, 1.0), (0.4, 0.99), (0.4, 1.0)}
    assert [point.q for point in n3_points(n1, n2, top=1)] == [0.99, 1.0]
    assert len(n3_points(n1, n2, top=4)) == 12


def test_a_policy_that_explodes_on_one_layer_is_reported_and_never_chosen() -> None:
    n2 = small_scales()["N2"]
    exploding = next(row for row in n2.rows if row.member.q == 0.9)
    assert exploding.exploded == ("b",)
    assert exploding.mean("test") == min(row.mean("test") for row in n2.rows)
    assert n2.chosen.member.q == 0.99
    assert exploding not in n2.ranked("validation")
    assert all(point.member.q != 0.9 for point in small_scales()["N3"].rows)


def test_an_explosion_on_validation_tokens_counts_too() -> None:
    family = scale_family("N2", {ScalePoint(alpha=0.5, q=0.9): flat(1.0, 9.0)}, BASELINE)
    assert family.rows[0].exploded == ("b",)


def test_where_everything_explodes_smoothrot_is_chosen() -> None:
    family = scale_family("N2", {ScalePoint(alpha=0.5, q=0.9): flat(1e5, 1e5)}, BASELINE)
    assert family.chosen.member == BASELINE_POINT
    assert family.chosen.scores == BASELINE


def test_the_first_of_equals_is_chosen() -> None:
    family = scale_family("N1", {ScalePoint(alpha=a, q=1.0): flat(1.0, 1.0) for a in (0.6, 0.3)}, BASELINE)
    assert family.chosen.member.alpha == 0.6


def test_training_is_judged_on_validation_tokens_scale_policies_on_test_tokens() -> None:
    t1 = small_trained(small_scales())["T1"]
    assert (t1.judged_on, t1.chosen.member.learning_rate) == ("validation", 0.02)
    assert t1.ranked("test")[0].member.learning_rate == 0.01
    assert {family.judged_on for family in small_scales().values()} == {"test"}


def test_t2_starts_from_the_best_policies_at_the_best_rate_and_the_next_smaller() -> None:
    scales = small_scales()
    rates = (0.005, 0.02, 0.01)
    experiment = EXPERIMENT.model_copy(update={"learning_rates": rates})

    def t2(best: float) -> list[Configuration]:
        scored = {each: flat(1.0, float(each.learning_rate != best)) for each in t1_configurations(experiment)}
        return t2_configurations(experiment, scales["N3"], training_family("T1", scored))

    assert {each.learning_rate for each in t2(0.02)} == {0.02, 0.01}
    assert {each.learning_rate for each in t2(0.005)} == {0.005}
    starts = list(dict.fromkeys(each.start for each in t2(0.02)))
    assert starts == [row.member for row in scales["N3"].ranked()[:2]]
    assert starts[0] == ScalePoint(alpha=0.4, q=0.99)


@pytest.mark.parametrize("sites", [1, 3, 30])
def test_the_budget_bounds_every_family(sites: int) -> None:
    experiment = PaperExperiment()
    budget = unit_budget(experiment, sites)
    selected = min(sites, 5)
    assert budget["N1"] == 21 * selected
    assert (budget["N3"], budget["T2"]) == (25 * selected, 10 * selected)
    for top, alpha, q in ((1, (0.5,), (0.99,)), (2, (0.4, 0.5), (0.99, 0.999)), (3, (0.4, 0.5), (0.99, 1.0))):
        small = PaperExperiment(top=top, alpha=alpha, q=q)
        n1, n2 = (scale_family("N", {p: flat(1.0, 1.0) for p in f(small)}, BASELINE) for f in (n1_points, n2_points))
        assert len(n3_points(n1, n2, top)) * selected <= unit_budget(small, sites)["N3"]


def test_labels_tell_members_apart() -> None:
    points = n1_points(PaperExperiment()) + n2_points(PaperExperiment())
    assert len({point.label for point in points}) == len(set(points))
    configurations = [Configuration(start=start, learning_rate=0.01) for start in (None, *set(points))]
    assert len({each.label for each in configurations}) == len(configurations)
