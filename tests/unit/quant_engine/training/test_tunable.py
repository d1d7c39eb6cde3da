"""Factors of stored scales and of norms, against their dense definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from quant_engine.training.quantized_linears import SharedInput
from quant_engine.training.tunable import LearnedScale, TunableLinear, TunableNorms

OUTPUTS, INPUTS, TOKENS = 6, 8, 5


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_a_factor_of_every_scale_multiplies_its_weights(groups: int, biased: bool) -> None:
    w_OI, x_TI, bias_O = (
        _random(OUTPUTS, INPUTS),
        _random(TOKENS, INPUTS, seed=1),
        _random(OUTPUTS, seed=2) if biased else None,
    )
    linear = TunableLinear(w_OI, bias_O, torch.ones(OUTPUTS, groups), SharedInput())
    assert torch.equal(linear(x_TI), functional.linear(x_TI, w_OI, bias_O))
    assert linear.scale is not None
    with torch.no_grad():
        linear.scale.theta.copy_(_random(OUTPUTS, groups, seed=3))
    factor_OI = linear.scale.theta.exp().repeat_interleave(INPUTS // groups, dim=1)
    assert torch.allclose(linear(x_TI), functional.linear(x_TI, w_OI * factor_OI, bias_O), atol=1e-5)
    linear(x_TI).square().sum().backward()
    grad = linear.scale.theta.grad
    assert grad is not None
    assert bool((grad != 0).all())


def test_one_scale_of_a_whole_tensor_has_one_factor() -> None:
    w_OI, x_TI = _random(OUTPUTS, INPUTS), _random(TOKENS, INPUTS, seed=1)
    linear = TunableLinear(w_OI, None, torch.tensor([0.5]), SharedInput())
    assert linear.scale is not None
    with torch.no_grad():
        linear.scale.theta.fill_(0.25)
    assert torch.allclose(linear(x_TI), functional.linear(x_TI, w_OI) * torch.tensor(0.25).exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_learned_scale_is_stored_in_its_own_type(dtype: torch.dtype) -> None:
    stored = torch.tensor([[0.5, 1.0], [2.0, 0.001953125]]).to(dtype)
    scale = LearnedScale(stored)
    assert torch.equal(scale.stored().float(), stored.float())
    with torch.no_grad():
        scale.theta.copy_(torch.tensor([[0.02, 0.4], [-0.4, -3.0]]))
    found, factor = scale.stored(), scale.factor()
    assert found.dtype is dtype
    assert bool((found.float() > 0).all())
    # The factor of e4m3 is that of the next number which it can hold; the gradient is that of a free one.
    expected = found.float() / stored.float() if dtype is torch.float8_e4m3fn else scale.theta.exp()
    assert torch.allclose(factor, expected, rtol=1e-6)
    factor.sum().backward()
    assert scale.theta.grad is not None
    assert torch.allclose(scale.theta.grad, scale.theta.exp().detach(), rtol=1e-6)
    if dtype is torch.float8_e4m3fn:
        assert factor[0, 0] == 1.0
        assert factor[0, 1] == 1.5


def test_powers_of_two_are_not_learned() -> None:
    assert (
        TunableLinear(
            _random(OUTPUTS, INPUTS), None, torch.full((OUTPUTS, 1), 127, dtype=torch.uint8), SharedInput()
        ).scale
        is None
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norms_factor_multiplies_all_that_the_norm_multiplies_by(offset: float) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleDict({"norm": nn.RMSNorm(INPUTS)}), "norm": nn.RMSNorm(INPUTS)})
    weight_D = _random(INPUTS)
    model.requires_grad_(False)
    model["blocks"]["norm"].weight.data = weight_D.clone()  # type: ignore[index]  # a ModuleDict
    norms = TunableNorms(model, "blocks.", offset)
    (theta,) = norms.parameters()
    assert torch.allclose(norms.weights()["blocks.norm.weight"], weight_D, atol=1e-6)
    with torch.no_grad():
        theta.copy_(_random(INPUTS, seed=1))
    assert torch.allclose(
        norms.weights()["blocks.norm.weight"] + offset, (weight_D + offset) * theta.exp().detach(), atol=1e-5
    )
