"""The learned mixture equals the published loss on the outputs themselves."""

import pytest
import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.evaluation.layer_errors import plan_errors
from quant_engine.grids import fake_quantize_activation, fake_quantize_weight
from quant_engine.policy import ActivationQuantization, Differentiable, TransformKind, WeightQuantization
from quant_engine.selection import differentiable, error_gram, learned_mixture
from quant_engine.transforms import SitePlan, transform_activation, transform_weight
from quant_engine.transforms.primitives import Hadamard
from tests.unit.quant_engine.outliers import massive_input, weight

WEIGHTS, ACTIVATIONS = WeightQuantization(), ActivationQuantization()
SETTINGS = Differentiable(steps=40, temperature=0.5)


def _plans(width: int) -> list[SitePlan]:
    hadamard = (Hadamard(order=width),)
    scales_D = torch.linspace(0.5, 40.0, width)
    return [
        SitePlan(kind=TransformKind.NONE),
        SitePlan(kind=TransformKind.ROTATION, online=hadamard),
        SitePlan(kind=TransformKind.SMOOTH_ROTATION, scales_D=scales_D, label="l2", online=hadamard),
    ]


def _site() -> tuple[Tensor, list[Tensor], list[SitePlan]]:
    x_TI = massive_input(100, 96)
    return x_TI, [weight(24, 96), weight(8, 96, seed=5)], _plans(96)


def _outputs(x_TI: Tensor, linears: list[Tensor], plan: SitePlan) -> Tensor:
    inputs_TI = fake_quantize_activation(transform_activation(x_TI, plan), ACTIVATIONS)
    parts = [inputs_TI @ fake_quantize_weight(transform_weight(w_OI, plan), WEIGHTS).T for w_OI in linears]
    return torch.cat(parts, dim=1).double()


def test_the_gram_matrix_is_that_of_the_errors() -> None:
    x_TI, linears, plans = _site()
    y_TO = (x_TI @ torch.cat(linears).T).double()
    errors = torch.stack([(y_TO - _outputs(x_TI, linears, plan)).flatten() for plan in plans])
    whole = error_gram(x_TI, linears, plans, WEIGHTS, ACTIVATIONS)
    torch.testing.assert_close(whole, errors @ errors.T, rtol=1e-4, atol=1e-3)
    chunked = error_gram(x_TI, linears, plans, WEIGHTS, ACTIVATIONS, chunk_elements=len(plans) * 32 * 7)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)


def test_the_diagonal_is_the_squared_error() -> None:
    x_TI, linears, plans = _site()
    errors = plan_errors(x_TI, linears, plans, WEIGHTS, ACTIVATIONS)
    diagonal = error_gram(x_TI, linears, plans, WEIGHTS, ACTIVATIONS).diagonal().sqrt()
    assert diagonal.tolist() == pytest.approx(errors, rel=1e-5)


def test_weights_are_those_of_adam_on_the_outputs() -> None:
    """The published procedure, mixing the outputs themselves in every step."""
    x_TI, linears, plans = _site()
    y_TO = (x_TI @ torch.cat(linears).T).double()
    f_NTO = torch.stack([_outputs(x_TI, linears, plan) for plan in plans])
    size = (y_TO - f_NTO).square().sum(dim=(1, 2)).mean()
    a_N = torch.zeros(len(plans), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([a_N], lr=SETTINGS.learning_rate)
    for _ in range(SETTINGS.steps):
        optimizer.zero_grad()
        mixed_TO = torch.einsum("n,nto->to", torch.softmax(a_N / SETTINGS.temperature, dim=0), f_NTO)
        ((y_TO - mixed_TO).square().sum() / size).backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
        optimizer.step()
    expected = torch.softmax(a_N.detach() / SETTINGS.temperature, dim=0)
    mixture = differentiable(x_TI, linears, plans, WEIGHTS, ACTIVATIONS, SETTINGS)
    assert mixture.weights == pytest.approx(expected.tolist(), abs=1e-4)
    assert mixture.index == int(expected.argmax())
    assert mixture == differentiable(x_TI, linears, plans, WEIGHTS, ACTIVATIONS, SETTINGS)


def test_uncorrelated_errors_weigh_by_their_inverse_squares() -> None:
    squares = torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64)
    mixture = learned_mixture(torch.diag(squares), Differentiable(steps=400, learning_rate=0.05))
    assert mixture.weights == pytest.approx(((1 / squares) / (1 / squares).sum()).tolist(), abs=1e-4)
    assert mixture.index == 1


def test_a_candidate_that_only_complements_the_others_may_win() -> None:
    """What the argmax means: 2 is the worst alone, and cancels the errors of both others."""
    errors = torch.tensor([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [-1.2, 0.0, 0.0]], dtype=torch.float64)
    mixture = learned_mixture(errors @ errors.T, Differentiable(steps=500))
    assert mixture.index == 2
    assert mixture.loss < 1e-3


def test_equals_share_and_the_earlier_wins() -> None:
    mixture = learned_mixture(torch.zeros(3, 3, dtype=torch.float64), SETTINGS)
    assert mixture.weights == pytest.approx([1 / 3] * 3)
    assert (mixture.index, mixture.loss) == (0, 0.0)


def test_a_candidate_that_is_not_finite_weighs_nothing() -> None:
    x_TI, linears, plans = _site()
    broken = SitePlan(kind=TransformKind.SMOOTH, scales_D=torch.full((96,), float("nan")), label="l2")
    with_it = differentiable(x_TI, linears, [broken, *plans], WEIGHTS, ACTIVATIONS, SETTINGS)
    without = differentiable(x_TI, linears, plans, WEIGHTS, ACTIVATIONS, SETTINGS)
    assert with_it.weights[0] == 0.0
    assert with_it.weights[1:] == pytest.approx(without.weights)
    assert with_it.index == without.index + 1
    with pytest.raises(NumericalInstability, match="No candidate"):
        differentiable(x_TI, linears, [broken], WEIGHTS, ACTIVATIONS, SETTINGS)


def test_learned_clips_of_a_plan_count() -> None:
    """The rows of two linears are clipped at their own ratios."""
    x_TI, linears, _ = _site()
    clip_O1 = torch.linspace(0.5, 1.0, 32)[:, None]
    plan = SitePlan(kind=TransformKind.NONE, clip_ratio=0.9, weight_clip_OG=clip_O1)
    rounded_OI = fake_quantize_weight(torch.cat(linears), WEIGHTS, clip_ratio_R1=clip_O1)
    y_TO = fake_quantize_activation(x_TI, ActivationQuantization(clip_ratio=0.9)) @ rounded_OI.T
    expected = float((x_TI @ torch.cat(linears).T - y_TO).double().square().sum())
    assert float(error_gram(x_TI, linears, [plan], WEIGHTS, ACTIVATIONS)) == pytest.approx(expected, rel=1e-5)


def test_no_candidates() -> None:
    x_TI, linears, _ = _site()
    with pytest.raises(ValueError, match="no plan"):
        differentiable(x_TI, linears, [], WEIGHTS, ACTIVATIONS, SETTINGS)
