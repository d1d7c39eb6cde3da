"""Training: the objective against a dense definition, and the promises of its result."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability, UnsupportedPolicy
from quant_engine.evaluation.layer_errors import layer_errors
from quant_engine.hadamard import hadamard_matrix
from quant_engine.policy import (
    ActivationQuantization,
    SiteQuantization,
    Statistic,
    Training,
    Transform,
    TransformKind,
    WeightQuantization,
)
from quant_engine.training import TrainedScales, train_scales
from quant_engine.training.objective import prepare_batches
from quant_engine.training.scales import learning_rate_factor
from quant_engine.transforms import SitePlan, build_plan
from quant_engine.transforms.primitives import Hadamard
from tests.unit.quant_engine.definitions import channel_statistics, order_of
from tests.unit.quant_engine.outliers import massive_input, weight

INT4, TOKEN4 = WeightQuantization(), ActivationQuantization()
GRIDS = SiteQuantization(weights=INT4, activations=TOKEN4)
X_ALL, W = massive_input(448, 96, massive=60.0), weight(24, 96)
X_FIT, X_VAL = X_ALL[:320], X_ALL[320:]
START = build_plan(Transform(), channel_statistics(X_FIT), W)
SHORT = Training(steps=60, batch_tokens=64)


def train(
    training: Training = SHORT,
    start: SitePlan = START,
    *,
    seed: int = 0,
    weights: WeightQuantization = INT4,
    on_step: Callable[[int], None] | None = None,
) -> TrainedScales:
    return train_scales(
        X_FIT,
        X_VAL,
        W,
        start,
        training,
        SiteQuantization(weights=weights, activations=TOKEN4),
        seed=seed,
        on_step=on_step,
    )


def validation_error(plan: SitePlan) -> float:
    return layer_errors(X_VAL, W, plan, INT4, TOKEN4).error


def dense_error(x_TI: Tensor, w_OI: Tensor, scales_D: Tensor) -> Tensor:
    """E from dense matrices, differentiable by autograd alone, the identity standing in for round."""

    def int4(rows: Tensor) -> Tensor:
        step = rows.abs().amax(dim=1, keepdim=True) / 7
        return (rows / step + (torch.round(rows / step) - rows / step).detach()) * step

    rotation = hadamard_matrix(w_OI.shape[1], dtype=w_OI.dtype)
    quantized_TO = int4(x_TI @ torch.diag(1 / scales_D) @ rotation.T) @ int4(w_OI @ torch.diag(scales_D) @ rotation.T).T
    return (x_TI @ w_OI.T - quantized_TO).norm()


def test_a_whole_batch_is_the_layer_error_with_the_dense_gradient() -> None:
    x_TI, w_OI = X_FIT.double(), W.double()
    scales_D = (torch.rand(96, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5).requires_grad_()
    reference_D = scales_D.detach().clone().requires_grad_()
    batches = prepare_batches(x_TI, w_OI, START, GRIDS, tokens=320, outputs=24)
    plan = START.with_scales(scales_D, "learned")
    error = batches.draw(torch.Generator()).error(plan, GRIDS)
    expected = dense_error(x_TI, w_OI, reference_D)
    assert float(error.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    detached = plan.with_scales(scales_D.detach(), "learned")
    assert float(error.detach()) == pytest.approx(layer_errors(x_TI, w_OI, detached, INT4, TOKEN4).error, rel=1e-9)
    assert batches.norm == pytest.approx(float((x_TI @ w_OI.T).norm()))
    error.backward()
    expected.backward()
    torch.testing.assert_close(scales_D.grad, reference_D.grad, rtol=1e-6, atol=1e-9)


def test_batches_estimate_the_squared_error_without_bias() -> None:
    batches = prepare_batches(X_FIT, W, START, GRIDS, tokens=40, outputs=8)
    generator = torch.Generator().manual_seed(0)
    other = build_plan(Transform(statistic=Statistic(kind="l2")), channel_statistics(X_FIT), W)
    squares = torch.tensor([float(batches.draw(generator).error(other, GRIDS)) ** 2 for _ in range(1500)])
    exact = layer_errors(X_FIT, W, other, INT4, TOKEN4).error ** 2
    standard_error = float(squares.std()) / len(squares) ** 0.5
    assert abs(float(squares.mean()) - exact) < 4 * standard_error
    assert standard_error < 0.05 * exact


@pytest.mark.parametrize("kind", [TransformKind.SMOOTH, TransformKind.SMOOTH_ROTATION])
def test_training_lowers_the_validation_error(kind: TransformKind) -> None:
    start = build_plan(Transform(kind=kind), channel_statistics(X_FIT), W)
    found = train(start=start)
    assert found.start_error == pytest.approx(validation_error(start))
    assert found.validation_error == pytest.approx(validation_error(found.plan))
    assert found.validation_error < 0.995 * found.start_error
    assert found.plan.label == "learned"
    assert (found.plan.kind, order_of(found.plan), found.plan.alpha) == (start.kind, order_of(start), start.alpha)
    assert found.best_step in {point.step for point in found.curve}
    assert found.learning_rate == 0.02
    assert found.plan.scales_D is not None
    assert not found.plan.scales_D.requires_grad
    assert (found.plan.scales_D > 0).all()


def test_ones_are_a_start_too() -> None:
    start = START.with_scales(torch.ones(96), "ones")
    found = train(Training(steps=150, batch_tokens=64, learning_rates=(0.05,)), start)
    assert found.validation_error < 0.8 * found.start_error


def test_full_batch() -> None:
    found = train(Training(steps=20, batch_tokens=None))
    losses = [point.loss for point in found.curve]
    assert losses[-1] < losses[0] * 1.05
    assert found.validation_error <= found.start_error


def test_what_only_gets_worse_leaves_the_start() -> None:
    found = train(Training(steps=20, learning_rates=(10.0,), batch_tokens=64))
    assert found.plan is START
    assert (found.best_step, found.learning_rate) == (0, None)
    assert found.validation_error == found.start_error


def test_the_best_rate_is_kept() -> None:
    both = train(Training(steps=60, batch_tokens=64, learning_rates=(10.0, 0.02)))
    assert both.learning_rate == 0.02
    assert [point.learning_rate for point in both.curve] == sorted([p.learning_rate for p in both.curve], reverse=True)
    assert {point.learning_rate for point in both.curve} == {10.0, 0.02}


def test_equal_seeds_give_equal_bits() -> None:
    first, again, other = train(seed=3), train(seed=3), train(seed=4)
    assert first.plan.scales_D is not None
    assert again.plan.scales_D is not None
    assert other.plan.scales_D is not None
    assert torch.equal(first.plan.scales_D, again.plan.scales_D)
    assert first.curve == again.curve
    assert not torch.equal(first.plan.scales_D, other.plan.scales_D)


def test_the_bound_holds() -> None:
    found = train(Training(steps=60, batch_tokens=64, learning_rates=(0.2,), max_log_ratio=0.05))
    assert found.best_step > 0
    assert found.plan.scales_D is not None
    assert START.scales_D is not None
    drift = (found.plan.scales_D.log() - START.scales_D.log()).abs()
    # The offset of 1e-5 moves a scale that small by up to 2 %.
    assert float(drift.max()) <= 0.05 + 1e-3


def test_patience_ends_a_run() -> None:
    patient = train(Training(steps=400, patience=20, batch_tokens=64, learning_rates=(10.0,)))
    assert patient.curve[-1].step == 20


def test_a_global_factor_of_the_start_changes_nothing_but_the_factor() -> None:
    assert START.scales_D is not None
    found, scaled = train(), train(start=START.with_scales(START.scales_D * 1024.0, "absmax"))
    assert found.plan.scales_D is not None
    assert scaled.plan.scales_D is not None
    assert scaled.best_step == found.best_step
    torch.testing.assert_close(scaled.plan.scales_D / 1024.0, found.plan.scales_D, rtol=1e-4, atol=0.0)


def test_steps_are_told_and_may_be_stopped() -> None:
    told: list[int] = []
    train(Training(steps=15, batch_tokens=64), on_step=told.append)
    assert told == list(range(1, 16))

    class Cancelled(Exception):
        pass

    def cancel(step: int) -> None:
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(Training(steps=15, batch_tokens=64), on_step=cancel)


def test_the_callers_gradient_mode_does_not_matter() -> None:
    with torch.no_grad():
        inside = train()
    assert inside.plan.scales_D is not None
    outside = train().plan.scales_D
    assert outside is not None
    assert torch.equal(inside.plan.scales_D, outside)


@pytest.mark.parametrize("granularity", ["group", "tensor"])
def test_other_granularities(granularity: str) -> None:
    fields = {"granularity": granularity} | ({"group_size": 32} if granularity == "group" else {})
    found = train(weights=WeightQuantization.model_validate(fields))
    assert found.validation_error < found.start_error


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rotation"):
        train(start=SitePlan(kind=TransformKind.ROTATION, online=(Hadamard(order=96),)))
    with pytest.raises(UnsupportedPolicy, match="64"):
        train(weights=WeightQuantization(granularity="group", group_size=64))


def test_broken_inputs_are_errors() -> None:
    broken_W, broken_X = W.clone(), X_FIT.clone()
    broken_W[0, 0] = broken_X[0, 0] = float("nan")
    with pytest.raises(NumericalInstability):
        train_scales(X_FIT, X_VAL, broken_W, START, SHORT, GRIDS, seed=0)
    with pytest.raises(NumericalInstability):
        train_scales(broken_X, X_VAL, W, START, SHORT, GRIDS, seed=0)


def test_schedule() -> None:
    training = Training(steps=105, warmup=5)
    factors = [learning_rate_factor(step, training) for step in range(105)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert factors[55] == pytest.approx(0.5)
    assert factors[30] == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[5:]))
    assert 0.0 < factors[-1] < 0.001
    assert learning_rate_factor(0, Training(steps=5, warmup=5)) == pytest.approx(1 / 6)


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        train(Training(steps=1)).best_step = 3  # type: ignore[misc]  # what is tested
