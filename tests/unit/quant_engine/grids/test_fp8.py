"""fp8 against the list of its 253 numbers, written out from the format's definition."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from quant_engine.grids import (
    Float8Grid,
    fake_quantize_activation,
    fake_quantize_on_grid,
    fake_quantize_weight,
    grid_of,
)
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from tests.unit.quant_engine.nearest import quantize_weight
from tests.unit.quant_engine.outliers import massive_input, weight

Granularity = Literal["channel", "group", "tensor"]


def e4m3_numbers() -> list[tuple[float, bool]]:
    """Every finite e4m3 number ascending, with whether its mantissa is even: bias 7, no infinities, one NaN a sign."""
    positive = [
        (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa % 2 == 0)
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) not in ((15, 7), (0, 0))
    ]
    return [(-value, even) for value, even in reversed(positive)] + [(0.0, True), *positive]


def nearest_by_search(values: Tensor) -> Tensor:
    numbers = e4m3_numbers()
    table = torch.tensor([value for value, _ in numbers], dtype=torch.float64)
    # An odd mantissa loses every tie.
    handicap = torch.tensor([0.0 if even else 1e-12 for _, even in numbers], dtype=torch.float64)
    distance = (values.double().reshape(-1, 1) - table).abs() + handicap
    return table[distance.argmin(dim=1)].reshape(values.shape)


def spec(granularity: Granularity = "channel") -> WeightQuantization:
    size = 8 if granularity == "group" else None
    return WeightQuantization(format=NumberFormat.FP8, granularity=granularity, group_size=size)


def test_the_grid_is_e4m3() -> None:
    grid = grid_of(NumberFormat.FP8)
    assert grid == Float8Grid()
    ties = torch.tensor([(a + b) / 2 for (a, _), (b, _) in zip(e4m3_numbers(), e4m3_numbers()[1:], strict=False)])
    beyond = torch.tensor([449.0, 463.0, 465.0, 1e6, -1e6])
    random = 300.0 * torch.randn(2000, generator=torch.Generator().manual_seed(0)) ** 3
    values = torch.cat([ties, beyond, random])
    assert torch.equal(Float8Grid().nearest_(values.clone()).double(), nearest_by_search(values))


@pytest.mark.parametrize(("granularity", "shared"), [("channel", 32), ("group", 8), ("tensor", 192)])
def test_weights_are_scaled_to_448(granularity: Granularity, shared: int) -> None:
    w_OI = weight(6, 32)
    quantized = quantize_weight(w_OI, spec(granularity))
    assert quantized.codes.dtype is torch.float8_e4m3fn
    assert quantized.bits == 8
    rows = w_OI.reshape(-1, shared)
    scale = rows.abs().amax(dim=1, keepdim=True) / 448
    torch.testing.assert_close(quantized.scale.reshape(-1, 1), scale)
    found = quantized.codes.double().reshape(-1, shared)
    assert torch.equal(found, nearest_by_search(rows / quantized.scale.reshape(-1, 1)))
    assert torch.equal(fake_quantize_weight(w_OI, spec(granularity)), quantized.dequantize())


def test_the_error_is_relative() -> None:
    """Three bits of mantissa: within 1/16 of every value in the normal range, however small the value."""
    w_OI = weight(16, 64, dtype=torch.float64)
    normal = w_OI.abs() > w_OI.abs().amax(dim=1, keepdim=True) / 448 * 2.0**-6
    error = (fake_quantize_weight(w_OI, spec()) - w_OI).abs()
    assert (error[normal] <= w_OI.abs()[normal] / 16 * (1 + 1e-9)).all()


def test_activations_by_token() -> None:
    x_TI = massive_input(20, 24, dtype=torch.float64).reshape(4, 5, 24)
    found = fake_quantize_activation(x_TI, ActivationQuantization(format=NumberFormat.FP8))
    scale = x_TI.abs().amax(dim=-1, keepdim=True) / 448
    torch.testing.assert_close(found, nearest_by_search(x_TI / scale) * scale)


@pytest.mark.parametrize("clip_ratio", [1.0, 0.5])
def test_gradient_goes_straight_through_round_only(clip_ratio: float) -> None:
    generator = torch.Generator().manual_seed(4)
    values, upstream = torch.randn(2, 5, 40, dtype=torch.float64, generator=generator)
    ours, reference = values.clone().requires_grad_(), values.clone().requires_grad_()
    fake_quantize_on_grid(ours, grid=Float8Grid(), clip_ratio=clip_ratio).backward(upstream)
    scale = reference.abs().amax(dim=-1, keepdim=True) * clip_ratio / 448
    ratio = (reference / scale).clamp(-448, 448)
    ((ratio + (nearest_by_search(ratio.detach()) - ratio).detach()) * scale).backward(upstream)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-9)
