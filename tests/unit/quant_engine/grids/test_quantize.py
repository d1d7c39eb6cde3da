"""Grids against a scalar definition in plain Python, and the laws that rounding obeys."""

import itertools
import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids import fake_quantize_activation, fake_quantize_weight, largest_code
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from tests.unit.quant_engine.nearest import quantize_weight
from tests.unit.quant_engine.outliers import massive_input, weight

FORMATS = [each for each in NumberFormat if each.bits is not None and not each.is_float]
Granularity = Literal["channel", "group", "tensor"]


def spec(
    number_format: NumberFormat = NumberFormat.INT4, granularity: Granularity = "channel", size: int | None = None
) -> WeightQuantization:
    return WeightQuantization(format=number_format, granularity=granularity, group_size=size)


def rounded_by_hand(values: list[float], bits: int, clip_ratio: float = 1.0) -> tuple[list[int], float]:
    """Codes and scale of values that share a scale: half to even, as IEEE and Python's round do."""
    top = 2 ** (bits - 1) - 1
    scale = clip_ratio * max(abs(v) for v in values) / top or 1.0
    return [max(-top - 1, min(top, round(v / scale))) for v in values], scale


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize(
    ("granularity", "size", "shared"), [("channel", None, 32), ("group", 8, 8), ("tensor", None, 192)]
)
def test_codes_and_scales_are_the_definitions(
    number_format: NumberFormat, granularity: Granularity, size: int | None, shared: int
) -> None:
    w_OI = weight(6, 32, dtype=torch.float64)
    quantized = quantize_weight(w_OI, spec(number_format, granularity, size))
    assert quantized.codes.dtype is torch.int8
    assert quantized.bits == number_format.bits
    expected = [rounded_by_hand(row, quantized.bits) for row in w_OI.reshape(-1, shared).tolist()]
    assert quantized.codes.reshape(-1, shared).tolist() == [codes for codes, _ in expected]
    assert quantized.scale.flatten().tolist() == pytest.approx([scale for _, scale in expected], rel=1e-14)
    by_hand = torch.tensor([[c * s for c in codes] for codes, s in expected], dtype=torch.float64).reshape(6, 32)
    torch.testing.assert_close(quantized.dequantize(), by_hand)


def test_scale_shapes() -> None:
    w_OI = weight(6, 32)
    assert quantize_weight(w_OI, spec()).scale.shape == (6, 1)
    assert quantize_weight(w_OI, spec(granularity="group", size=8)).scale.shape == (6, 4)
    assert quantize_weight(w_OI, spec(granularity="tensor")).scale.shape == (1, 1)


def test_int4_is_the_papers() -> None:
    """scale = absmax / 7, and the peak is the code 7."""
    quantized = quantize_weight(torch.tensor([[7.0, -7.0, 3.4, 0.5, 1.5]]), spec())
    assert quantized.scale.item() == 1.0
    assert quantized.codes.tolist() == [[7, -7, 3, 0, 2]]


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_vanishing_rows_are_safe(granularity: Granularity, value: float) -> None:
    quantized = quantize_weight(torch.full((2, 16), value), spec(NumberFormat.INT8, granularity))
    assert torch.equal(quantized.codes, torch.zeros(2, 16, dtype=torch.int8))
    assert torch.isfinite(quantized.scale).all()
    assert (quantized.scale > 0).all()
    x_TI = torch.zeros(3, 16, requires_grad=True)
    fake_quantize_activation(x_TI, ActivationQuantization()).sum().backward()
    assert x_TI.grad is not None
    assert torch.isfinite(x_TI.grad).all()


@pytest.mark.parametrize("granularity", ["channel", "group", "tensor"])
def test_fake_quantization_is_the_round_trip(granularity: Granularity) -> None:
    policy = spec(granularity=granularity, size=8 if granularity == "group" else None)
    w_OI = weight(6, 32)
    assert torch.equal(fake_quantize_weight(w_OI, policy), quantize_weight(w_OI, policy).dequantize())


def test_group_size_has_to_divide() -> None:
    with pytest.raises(UnsupportedPolicy, match=r"24.*32"):
        quantize_weight(weight(2, 32), spec(granularity="group", size=24))
    with pytest.raises(UnsupportedPolicy, match=r"128.*576.*Use 96 or 144,"):
        quantize_weight(weight(2, 576), spec(granularity="group", size=128))
    with pytest.raises(UnsupportedPolicy, match=r"Use 32,"):
        quantize_weight(weight(2, 32), spec(granularity="group", size=64))


def test_none_leaves_tensors_alone() -> None:
    w_OI = weight(2, 32)
    assert fake_quantize_weight(w_OI, spec(NumberFormat.NONE)) is w_OI
    assert fake_quantize_activation(w_OI, ActivationQuantization(format=NumberFormat.NONE)) is w_OI
    with pytest.raises(UnsupportedPolicy, match="none"):
        quantize_weight(w_OI, spec(NumberFormat.NONE))


@pytest.mark.parametrize("clip_ratio", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("number_format", [NumberFormat.INT2, NumberFormat.INT4, NumberFormat.INT8])
def test_activations_by_token(clip_ratio: float, number_format: NumberFormat) -> None:
    x_TI = massive_input(20, 24, dtype=torch.float64).reshape(4, 5, 24)
    found = fake_quantize_activation(x_TI, ActivationQuantization(format=number_format, clip_ratio=clip_ratio))
    expected = []
    for row in x_TI.reshape(-1, 24).tolist():
        codes, scale = rounded_by_hand(row, number_format.bits or 0, clip_ratio)
        expected.append([code * scale for code in codes])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).reshape(4, 5, 24))


def straight_through_by_autograd(v_RG: Tensor, bits: int, clip_ratio: float) -> Tensor:
    """The same function from torch's own operations, only ``round`` being replaced by the identity in the gradient."""
    scale = v_RG.abs().amax(dim=-1, keepdim=True) * clip_ratio / largest_code(bits)
    ratio = v_RG / scale
    rounded = ratio + (ratio.round() - ratio).detach()
    return rounded.clamp(-largest_code(bits) - 1, largest_code(bits)) * scale


@pytest.mark.parametrize("clip_ratio", [1.0, 0.6])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(2, 40))
def test_gradient_goes_straight_through_round_only(
    clip_ratio: float, seed: int, bits: int, rows: int, columns: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    upstream = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    ours, reference = values.clone().requires_grad_(), values.clone().requires_grad_()
    policy = ActivationQuantization(format=NumberFormat(f"int{bits}"), clip_ratio=clip_ratio)
    fake_quantize_activation(ours, policy).backward(upstream)
    straight_through_by_autograd(reference, bits, clip_ratio).backward(upstream)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-9)


def test_the_gradient_reaches_the_scale() -> None:
    """Scaling a row scales its quantization, so by Euler ⟨∇f, v⟩ = f: impossible without a gradient through absmax."""
    v = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    quantized = fake_quantize_weight(v, spec())
    quantized.sum().backward()
    assert v.grad is not None
    torch.testing.assert_close((v.grad * v).sum(), quantized.sum())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), granularity=st.sampled_from(["channel", "group", "tensor"]))
def test_error_falls_with_bits(seed: int, granularity: Granularity) -> None:
    w_OI = weight(8, 64, seed=seed)
    size = 16 if granularity == "group" else None
    errors = [
        float((w_OI - fake_quantize_weight(w_OI, spec(number_format, granularity, size))).norm())
        for number_format in FORMATS
    ]
    assert all(more < fewer for fewer, more in itertools.pairwise(errors))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), exponent=st.integers(-20, 20))
def test_rounding_is_odd_bounded_and_scales_along(seed: int, bits: int, exponent: int) -> None:
    policy = spec(NumberFormat(f"int{bits}"))
    w_OI = weight(4, 32, seed=seed)
    rounded = fake_quantize_weight(w_OI, policy)
    half_step = quantize_weight(w_OI, policy).scale / 2
    assert ((w_OI - rounded).abs() <= half_step * (1 + 1e-5)).all()
    assert torch.equal(fake_quantize_weight(-w_OI, policy), -rounded)
    assert torch.equal(
        fake_quantize_weight(w_OI * math.ldexp(1.0, exponent), policy), rounded * math.ldexp(1.0, exponent)
    )
