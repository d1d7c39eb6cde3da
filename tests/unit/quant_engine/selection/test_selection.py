"""Which layers are selected, and which plan a layer keeps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant_engine.errors import NumericalInstability
from quant_engine.evaluation.layer_errors import layer_errors
from quant_engine.policy import ActivationQuantization, LayerChoice, Transform, TransformKind, WeightQuantization
from quant_engine.selection import choose_layers, lowest_error
from quant_engine.transforms import SitePlan, build_plan
from quant_engine.transforms.primitives import Hadamard
from tests.unit.quant_engine.definitions import channel_statistics
from tests.unit.quant_engine.outliers import massive_input, weight


def test_three_worst_the_median_and_the_quarter() -> None:
    """13 layers remain of 16: the 7th and the 4th from below, as in the paper's LLaMA-3.2-1B."""
    errors = {f"layer{i:02d}": float(10 * i) for i in range(16)}
    assert choose_layers(errors, LayerChoice()) == {
        "layer15": "critical",
        "layer14": "critical",
        "layer13": "critical",
        "layer06": "normal",
        "layer03": "normal",
    }


@pytest.mark.parametrize(
    ("count", "choice", "critical", "normal"),
    [
        (30, LayerChoice(), [29, 28, 27], [13, 7]),
        (5, LayerChoice(), [4, 3, 2], [1, 0]),
        (4, LayerChoice(), [3, 2, 1], [0]),
        (2, LayerChoice(), [1, 0], []),
        (1, LayerChoice(), [0], []),
        (9, LayerChoice(critical=1, normal=1), [8], [4]),
        (9, LayerChoice(critical=2, normal=0), [8, 7], []),
        (8, LayerChoice(critical=1, normal=6), [7], [5, 4, 3, 2, 1, 0]),
    ],
)
def test_any_number_of_layers(count: int, choice: LayerChoice, critical: list[int], normal: list[int]) -> None:
    chosen = choose_layers({str(i): 1.0 + i for i in range(count)}, choice)
    assert [int(name) for name, group in chosen.items() if group == "critical"] == critical
    assert [int(name) for name, group in chosen.items() if group == "normal"] == normal


@given(
    errors=st.dictionaries(
        st.text(min_size=1, max_size=4), st.sampled_from([1.0, 2.0, 3.0]) | st.floats(0.1, 1e9), max_size=20
    ),
    critical=st.integers(1, 6),
    normal=st.integers(0, 6),
)
def test_counts_and_order(errors: dict[str, float], critical: int, normal: int) -> None:
    chosen = choose_layers(errors, LayerChoice(critical=critical, normal=normal))
    groups = list(chosen.values())
    assert groups.count("critical") == min(critical, len(errors))
    assert groups.count("normal") == min(normal, max(len(errors) - critical, 0))
    worst = [errors[name] for name, group in chosen.items() if group == "critical"]
    assert worst == sorted(errors.values(), reverse=True)[: len(worst)]
    shuffled = dict(sorted(errors.items(), reverse=True))
    assert choose_layers(shuffled, LayerChoice(critical=critical, normal=normal)) == chosen


def test_the_lowest_error_wins() -> None:
    x_TI, w_OI = massive_input(100, 96), weight(24, 96)
    stats, weights, activations = channel_statistics(x_TI), WeightQuantization(), ActivationQuantization()
    plans = [build_plan(Transform(kind=kind), stats, w_OI, tokens=lambda: x_TI) for kind in TransformKind]
    chosen = lowest_error(x_TI, [w_OI], plans, weights, activations)
    errors = [layer_errors(x_TI, w_OI, plan, weights, activations).error for plan in plans]
    assert chosen.errors == pytest.approx(errors, rel=1e-6)
    assert chosen.index == errors.index(min(errors))
    assert chosen.plan is plans[chosen.index]
    assert chosen.plan.kind is TransformKind.SMOOTH_CAT


def test_the_earlier_of_equals_wins() -> None:
    plans = [SitePlan(kind=TransformKind.NONE), SitePlan(kind=TransformKind.NONE)]
    chosen = lowest_error(massive_input(4, 96), [weight(4, 96)], plans, WeightQuantization(), ActivationQuantization())
    assert chosen.index == 0


def test_what_is_computed_online_counts() -> None:
    x_TI, w_OI = massive_input(100, 96), weight(24, 96)
    plans = [SitePlan(kind=TransformKind.NONE), SitePlan(kind=TransformKind.ROTATION, online=(Hadamard(order=96),))]
    weights, activations = WeightQuantization(), ActivationQuantization()
    errors = [layer_errors(x_TI, w_OI, plan, weights, activations).error for plan in plans]
    cost = Hadamard(order=96).cost(96) / (96 * 24)
    chosen = lowest_error(x_TI, [w_OI], plans, weights, activations, online_cost=2.0)
    assert chosen.costs == (0.0, cost)
    assert chosen.scores == pytest.approx([errors[0], errors[1] * (1 + 2 * cost)], rel=1e-6)
    cheap = errors.index(min(errors))
    assert lowest_error(x_TI, [w_OI], plans, weights, activations).index == cheap


def test_a_plan_that_can_not_be_measured_is_not_chosen() -> None:
    x_TI, w_OI = massive_input(40, 96), weight(8, 96)
    broken = SitePlan(kind=TransformKind.SMOOTH, scales_D=torch.full((96,), math.nan))
    weights, activations = WeightQuantization(), ActivationQuantization()
    chosen = lowest_error(x_TI, [w_OI], [broken, SitePlan(kind=TransformKind.NONE)], weights, activations)
    assert chosen.index == 1
    assert chosen.errors[0] == math.inf
    assert chosen.errors[1] == layer_errors(x_TI, w_OI, chosen.plan, weights, activations).error
    with pytest.raises(NumericalInstability, match="None of 2"):
        lowest_error(x_TI, [w_OI], [broken, broken], weights, activations)


def test_no_candidates() -> None:
    with pytest.raises(ValueError, match="no plan"):
        lowest_error(massive_input(4, 96), [weight(4, 96)], [], WeightQuantization(), ActivationQuantization())
