"""A transform that is chosen while it is learned: the mixture against its definition, and the choice at its end."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_matrix
from quant_engine.policy import (
    ActivationQuantization,
    BlockTraining,
    Differentiable,
    SiteQuantization,
    TransformKind,
    WeightQuantization,
)
from quant_engine.training import LearnableMixture, LearnablePlan
from quant_engine.training.learnable import plan_inputs, plan_weights
from quant_engine.transforms import SitePlan
from quant_engine.transforms.primitives import Kronecker
from tests.unit.quant_engine.definitions import is_orthogonal, matrix_of
from tests.unit.quant_engine.outliers import massive_input, weight

D = 48
X = massive_input(64, D, massive=60.0)
LINEARS = (weight(20, D), weight(12, D, seed=2))
INT4 = SiteQuantization(weights=WeightQuantization(), activations=ActivationQuantization())
ONLY_TRANSFORM = BlockTraining(learn=("transform",))
SPREAD = Kronecker(left_AA=hadamard_matrix(4), right_BB=hadamard_matrix(12))
PLANS = (
    SitePlan(kind=TransformKind.NONE),
    SitePlan(kind=TransformKind.KRONECKER, online=(SPREAD,)),
    SitePlan(kind=TransformKind.KRONECKER_ROTATION, online=(SPREAD,)),
)


def mixture(steps: int = 5, temperature: float = 1.0, starts: Sequence[SitePlan] = PLANS) -> LearnableMixture:
    """Ten steps in all, the first ``steps`` of which are the mixture's."""
    plans = [LearnablePlan(plan, ONLY_TRANSFORM, LINEARS, INT4) for plan in starts]
    return LearnableMixture(plans, Differentiable(steps=steps, temperature=temperature), 10)


def outputs(site: object) -> Tensor:
    return torch.cat([site.rounder(X) @ w.T for w in site.weights], dim=-1)  # type: ignore[attr-defined]  # a site


def quantized_output(plan: SitePlan) -> Tensor:
    inputs = plan_inputs(X, plan, INT4)
    return torch.cat([inputs @ w.T for w in plan_weights(LINEARS, plan, INT4)], dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_it_computes_the_weighted_sum_of_its_candidates(temperature: float) -> None:
    mixed = mixture(temperature=temperature)
    with torch.no_grad():
        mixed.logit_N.copy_(torch.tensor([0.3, -0.2, 0.1]))
        share = (torch.tensor([0.3, -0.2, 0.1]) / temperature).exp()
        expected = sum(p * quantized_output(plan) for p, plan in zip(share / share.sum(), PLANS, strict=True))
        torch.testing.assert_close(outputs(mixed.quantized()), expected, rtol=1e-4, atol=1e-3)
    assert mixed.weights == pytest.approx((share / share.sum()).tolist())


def backward(mixed: LearnableMixture) -> Tensor:
    """The gradient of the square error in the weights' logits."""
    y_TO = X @ torch.cat(LINEARS).T
    (outputs(mixed.quantized()) - y_TO).square().mean().backward()  # type: ignore[no-untyped-call]  # torch's
    assert mixed.logit_N.grad is not None
    return mixed.logit_N.grad


def test_gradients_reach_the_weights_and_every_candidate() -> None:
    mixed = mixture()
    assert bool((backward(mixed) != 0).all())
    parameters = mixed.transform_parameters()
    assert len(parameters) == 4
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in parameters)


def test_descent_takes_weight_from_the_worse_candidate() -> None:
    """The site has outliers, so the one without a transform is worse."""
    assert backward(mixture(starts=PLANS[:2])).argmax() == 0
    assert backward(mixture(starts=PLANS[1::-1])).argmax() == 1


def test_after_its_steps_only_the_largest_is_left() -> None:
    mixed = mixture(steps=5)
    with torch.no_grad():
        mixed.logit_N[1] = 0.5
    for share, together in ((0.1, True), (0.5, True), (0.6, False), (1.0, False)):
        mixed.advance(share)
        assert (mixed.quantized().rounder(X).shape[-1] == 3 * D) is together
    torch.testing.assert_close(outputs(mixed.quantized()), quantized_output(PLANS[1]), rtol=1e-4, atol=1e-3)
    assert mixed.plan().kind is TransformKind.KRONECKER


def test_of_equal_weights_the_first_is_taken() -> None:
    assert mixture().index == 0
    assert mixture().plan().kind is TransformKind.NONE


def test_a_rotation_stays_one_while_it_is_learned() -> None:
    learnable = LearnablePlan(PLANS[2], ONLY_TRANSFORM, LINEARS, INT4)
    optimizer = torch.optim.Adam(learnable.parameters(), lr=0.05)
    y_TO = X @ torch.cat(LINEARS).T
    for _ in range(3):
        optimizer.zero_grad()
        (outputs(learnable.quantized()) - y_TO).square().mean().backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    (primitive,) = learnable.plan().online
    assert not torch.allclose(matrix_of(primitive, D), matrix_of(SPREAD, D), atol=0.01)
    assert is_orthogonal(matrix_of(primitive, D))
    torch.testing.assert_close(
        outputs(learnable.quantized()).detach(), quantized_output(learnable.plan()), rtol=1e-3, atol=1e-2
    )
