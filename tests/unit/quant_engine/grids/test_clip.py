"""Clipping: the search against brute force, and the gradient of a learned ratio against autograd."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant_engine.grids import (
    IntegerGrid,
    fake_quantize_activation,
    fake_quantize_on_grid,
    fake_quantize_weight,
    mse_clip_ratio,
    rounded_on,
    weight_scale,
)
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from tests.unit.quant_engine.nearest import quantize_weight
from tests.unit.quant_engine.outliers import massive_input, weight

Granularity = Literal["channel", "group", "tensor"]


def spec(
    number_format: NumberFormat = NumberFormat.INT4,
    granularity: Granularity = "channel",
    clip: Literal["none", "mse"] = "mse",
) -> WeightQuantization:
    size = 8 if granularity == "group" else None
    return WeightQuantization(format=number_format, granularity=granularity, group_size=size, clip=clip)


def squared_error(v_RG: Tensor, ratio: float | Tensor, bits: int, d_RG: Tensor | float = 1.0) -> Tensor:
    """[R] by the definition."""
    top = 2 ** (bits - 1) - 1
    scale = v_RG.abs().amax(dim=1, keepdim=True) * ratio / top
    codes = (v_RG / scale).round().clamp(-top - 1, top)
    return (d_RG * (codes * scale - v_RG) ** 2).sum(dim=1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_is_nearly_as_good_as_brute_force(bits: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    v_RG = weight(40, 96, dtype=torch.float64)
    d_RG = torch.rand(40, 96, generator=generator, dtype=torch.float64) ** 4 if weighted else None
    ratio_R1 = mse_clip_ratio(v_RG, rounded=rounded_on(IntegerGrid(bits)), weight_RG=d_RG)
    weights = 1.0 if d_RG is None else d_RG
    found_R = squared_error(v_RG, ratio_R1, bits, weights)
    every = torch.stack([squared_error(v_RG, step / 100, bits, weights) for step in range(6, 101)])
    assert ratio_R1.shape == (40, 1)
    assert ((ratio_R1 > 0) & (ratio_R1 <= 1)).all()
    assert (found_R <= every[-1]).all()
    assert (found_R >= every.amin(dim=0) * (1 - 1e-9)).all()
    assert found_R.sum() <= 1.01 * every.amin(dim=0).sum()


def test_rows_are_independent_of_the_chunks_they_are_looked_at_in() -> None:
    v_RG = weight(700, 512)
    ratio_R1 = mse_clip_ratio(v_RG, rounded=rounded_on(IntegerGrid(4)))
    assert torch.equal(mse_clip_ratio(v_RG[650:], rounded=rounded_on(IntegerGrid(4))), ratio_R1[650:])


def test_without_an_error_nothing_is_clipped() -> None:
    v_RG = torch.zeros(2, 16)
    v_RG[1, 3] = -5.0
    assert mse_clip_ratio(v_RG, rounded=rounded_on(IntegerGrid(4))).tolist() == [[1.0], [1.0]]
    assert torch.equal(quantize_weight(v_RG, spec()).dequantize(), v_RG)


@pytest.mark.parametrize("granularity", ["channel", "group", "tensor"])
@pytest.mark.parametrize("number_format", [NumberFormat.INT3, NumberFormat.FP8])
@pytest.mark.parametrize("important", [False, True])
def test_policy_clip_lowers_the_weighted_error(
    granularity: Granularity, number_format: NumberFormat, important: bool
) -> None:
    w_OI = weight(6, 32)
    d_I = torch.linspace(0.0, 1.0, 32) ** 3
    importance = d_I if important else None
    clipped = quantize_weight(w_OI, spec(number_format, granularity), importance_I=importance)
    plain = quantize_weight(w_OI, spec(number_format, granularity, "none"))
    weights = d_I if important else torch.ones(32)

    def error(q_OI: Tensor) -> Tensor:
        return (weights * (q_OI - w_OI) ** 2).sum()

    assert clipped.scale.shape == plain.scale.shape
    assert error(clipped.dequantize()) < error(plain.dequantize())
    found = fake_quantize_weight(w_OI, spec(number_format, granularity), importance_I=importance)
    assert torch.equal(found, clipped.dequantize())


def test_searched_clips_let_gradients_through() -> None:
    w_OI = weight(4, 32).requires_grad_()
    fake_quantize_weight(w_OI, spec()).square().sum().backward()
    assert w_OI.grad is not None
    assert (w_OI.grad != 0).any(dim=1).all()


def learned_by_autograd(v_RG: Tensor, bits: int, ratio: Tensor) -> Tensor:
    """From torch's own operations, only ``round`` being replaced by the identity in the gradient."""
    top = 2 ** (bits - 1) - 1
    scale = v_RG.abs().amax(dim=-1, keepdim=True) * ratio / top
    by_scale = v_RG / scale
    return (by_scale + (by_scale.round() - by_scale).detach()).clamp(-top - 1, top) * scale


@pytest.mark.parametrize("per_row", [False, True])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8))
def test_a_learned_ratio_gets_its_gradient(per_row: bool, seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, upstream = torch.randn(2, 3, 4, 20, dtype=torch.float64, generator=generator)
    drawn = 0.3 + 0.7 * torch.rand((3, 4, 1) if per_row else (), dtype=torch.float64, generator=generator)
    ours, reference = values.clone().requires_grad_(), values.clone().requires_grad_()
    ratio, ratio_reference = drawn.clone().requires_grad_(), drawn.clone().requires_grad_()
    found = fake_quantize_on_grid(ours, grid=IntegerGrid(bits), clip_ratio=ratio)
    expected = learned_by_autograd(reference, bits, ratio_reference)
    torch.testing.assert_close(found, expected)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ratio.grad, ratio_reference.grad, rtol=1e-9, atol=1e-9)


def test_a_ratio_learns_though_the_values_do_not() -> None:
    v_RG, ratio = weight(4, 32), torch.tensor(0.7, requires_grad=True)
    fake_quantize_on_grid(v_RG, grid=IntegerGrid(4), clip_ratio=ratio).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad != 0


def test_a_ratio_of_one_or_a_float_is_the_same_rounding() -> None:
    x_TI = massive_input(12, 24)
    learned = fake_quantize_activation(x_TI, ActivationQuantization(), clip_ratio=torch.tensor(1.0))
    assert torch.equal(learned, fake_quantize_activation(x_TI, ActivationQuantization()))
    by_token = fake_quantize_activation(x_TI, ActivationQuantization(), clip_ratio=torch.full((12, 1), 0.5))
    torch.testing.assert_close(by_token, fake_quantize_activation(x_TI, ActivationQuantization(clip_ratio=0.5)))


@pytest.mark.parametrize(("granularity", "rows"), [("channel", 6), ("group", 24), ("tensor", 1)])
def test_a_learned_ratio_takes_the_place_of_the_policys(granularity: Granularity, rows: int) -> None:
    w_OI, policy = weight(6, 32).bfloat16(), spec(granularity=granularity)
    ratio_R1 = torch.linspace(0.5, 0.9, rows).reshape(rows, 1)
    scale = weight_scale(w_OI, policy, clip_ratio_R1=ratio_R1)
    absmax = w_OI.reshape(rows, -1).abs().amax(dim=1).float()
    torch.testing.assert_close(scale.flatten().float(), absmax * ratio_R1.flatten() / 7, rtol=2e-2, atol=0.0)
    found = fake_quantize_weight(w_OI, policy, clip_ratio_R1=ratio_R1)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, quantize_weight(w_OI, policy, clip_ratio_R1=ratio_R1).dequantize())
