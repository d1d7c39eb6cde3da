"""fp4 against a table of its numbers and dense scales in fp64, and, bit for bit, against compressed-tensors."""

import itertools
from typing import Final

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
from compressed_tensors.quantization.quant_scheme import MXFP4, NVFP4
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp, generate_gparam
from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids import (
    MxFloat4Grid,
    NvFloat4Grid,
    e8m0,
    fake_quantize_activation,
    fake_quantize_on_grid,
    fake_quantize_weight,
    global_scale,
    grid_of,
    shared_peak,
)
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from tests.unit.quant_engine.nearest import quantize_weight
from tests.unit.quant_engine.outliers import massive_input, weight

FORMATS: Final = (NumberFormat.NVFP4, NumberFormat.MXFP4)
_THEIRS: Final[dict[NumberFormat, dict[str, QuantizationArgs]]] = {
    NumberFormat.NVFP4: NVFP4,
    NumberFormat.MXFP4: MXFP4,
}
_NUMBERS: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def nearest_by_search(values: Tensor) -> Tensor:
    """Half to even: the numbers at even places of the table have an even mantissa."""
    positive = torch.tensor(_NUMBERS, dtype=torch.float64)
    handicap = torch.tensor([0.0 if place % 2 == 0 else 1e-12 for place in range(8)], dtype=torch.float64)
    distance = (values.double().abs().reshape(-1, 1) - positive).abs() + handicap
    return positive[distance.argmin(dim=1)].reshape(values.shape) * values.double().sign()


def e4m3_by_search(value: float) -> float:
    """The nearest non-negative e4m3 number, half to even; 1/8 in the place of zero."""
    numbers = [
        (m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7), m % 2) for e in range(16) for m in range(8)
    ]
    nearest = min(numbers[:-1], key=lambda each: (abs(each[0] - value), each[1]))[0]
    return nearest or 0.125


def scales_by_hand(w_OI: Tensor, number_format: NumberFormat) -> Tensor:
    """[O, G] in fp64, from the formats' definitions."""
    size = number_format.group_size or 1
    peaks = w_OI.double().reshape(len(w_OI), -1, size).abs().amax(dim=-1)
    if number_format is NumberFormat.NVFP4:
        g = 448 * 6 / float(peaks.max())
        return torch.tensor([[e4m3_by_search(g * p / 6) / g for p in row] for row in peaks.tolist()])
    # The largest power of two that leaves at most 7 · a in the group, so that 6 · a cuts off an eighth at most.
    return torch.tensor([[next(2.0**k for k in range(-127, 127) if 7 * 2.0**k > p) for p in r] for r in peaks.tolist()])


def planted(rows: int = 24, width: int = 96) -> Tensor:
    """Magnitudes over many binades, a group of zeros, a row of zeros."""
    w_OI = weight(rows, width) * torch.exp(3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(5)))
    w_OI[3] = 0.0
    w_OI[5, 32:64] = 0.0
    return w_OI


def spec(number_format: NumberFormat) -> WeightQuantization:
    return WeightQuantization(format=number_format)


def test_the_codes_are_e2m1() -> None:
    ties = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(_NUMBERS)])
    beyond = torch.tensor([6.1, 6.9, 7.0, 1e6])
    random = 3.0 * torch.randn(2000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([ties, -ties, beyond, -beyond, random, torch.tensor(_NUMBERS)])
    assert torch.equal(MxFloat4Grid().nearest_(values.clone()).double(), nearest_by_search(values))


@pytest.mark.parametrize("number_format", FORMATS)
def test_scales_and_codes_are_the_definitions(number_format: NumberFormat) -> None:
    w_OI = planted()
    quantized = quantize_weight(w_OI, spec(number_format))
    assert quantized.bits == 4
    assert quantized.is_float4
    expected = scales_by_hand(w_OI, number_format)
    torch.testing.assert_close(quantized.scale.double(), expected.double(), rtol=1e-6, atol=0.0)
    groups = w_OI.reshape(*quantized.scale.shape, -1)
    codes = quantized.codes.double().reshape(groups.shape)
    assert torch.equal(codes, nearest_by_search(groups / quantized.scale.unsqueeze(-1)))
    dense = (codes * quantized.scale.double().unsqueeze(-1)).reshape(w_OI.shape)
    assert torch.equal(quantized.dequantize(), dense.to(torch.float32).to(torch.bfloat16))
    torch.testing.assert_close(fake_quantize_weight(w_OI, spec(number_format)).double(), dense, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 50.0])
def test_weights_are_compressed_tensors_bit_for_bit(number_format: NumberFormat, size: float) -> None:
    w_OI, arguments = planted() * size, _THEIRS[number_format]["weights"]
    groups = w_OI.unflatten(-1, (-1, arguments.group_size))
    g_1 = generate_gparam(w_OI.min(), w_OI.max()) if number_format is NumberFormat.NVFP4 else None
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments, global_scale=g_1)
    quantized = quantize_weight(w_OI, spec(number_format))
    assert torch.equal(quantized.scale, scale if g_1 is None else scale / g_1)
    assert (quantized.global_scale is None) == (g_1 is None)
    theirs = quantize(w_OI, scale, zero, arguments, global_scale=g_1)
    assert torch.equal(quantized.codes.float(), theirs)
    assert torch.equal(
        fake_quantize_weight(w_OI, spec(number_format)), fake_quantize(w_OI, scale, zero, arguments, g_1)
    )


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_activations_are_compressed_tensors_bit_for_bit(number_format: NumberFormat, dtype: torch.dtype) -> None:
    x_BTI = massive_input(21, 96).reshape(3, 7, 96).to(dtype)
    arguments = _THEIRS[number_format]["input_activations"]
    peak = 0.7 * float(x_BTI.abs().max())  # what lies beyond is cut off
    g_1 = global_scale(torch.tensor(peak)) if number_format is NumberFormat.NVFP4 else None
    scale, zero = compute_dynamic_scales_and_zp(x_BTI, arguments, None, global_scale=g_1)
    found = fake_quantize_activation(x_BTI, ActivationQuantization(format=number_format), peak=peak)
    assert found.dtype == dtype
    assert torch.equal(found, fake_quantize(x_BTI, scale, zero, arguments, global_scale=g_1))
    cut = bool(found.abs().max() < 0.8 * x_BTI.abs().max())
    assert cut == (number_format is NumberFormat.NVFP4)


def test_weights_that_run_as_one_share_the_tensor_scale() -> None:
    small, large = weight(8, 32), 9.0 * weight(8, 32)
    alone, beside = (
        quantize_weight(small, spec(NumberFormat.NVFP4), peak=peak) for peak in (None, shared_peak([small, large]))
    )
    own = quantize_weight(large, spec(NumberFormat.NVFP4))
    assert alone.global_scale is not None
    assert beside.global_scale is not None
    assert own.global_scale is not None
    assert torch.equal(beside.global_scale, own.global_scale)
    assert not torch.equal(beside.global_scale, alone.global_scale)
    stored = beside.scale * beside.global_scale
    torch.testing.assert_close(stored, stored.to(torch.float8_e4m3fn).float(), rtol=1e-6, atol=0.0)


def test_a_power_of_two_is_stored_as_its_exponent() -> None:
    exponents = torch.arange(-127, 126)
    scales = torch.ldexp(torch.ones(len(exponents), dtype=torch.float64), exponents)
    assert e8m0(scales).tolist() == [exponent + 127 for exponent in exponents.tolist()]


@pytest.mark.parametrize("number_format", FORMATS)
def test_clipping_by_squared_error_never_loses(number_format: NumberFormat) -> None:
    w_OI = weight(32, 128)
    plain, clipped = (WeightQuantization(format=number_format, clip=clip) for clip in ("none", "mse"))
    errors = [
        (fake_quantize_weight(w_OI, each) - w_OI).reshape(32, -1, 32).square().sum(-1) for each in (plain, clipped)
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-6)).all())
    assert float(errors[1].sum()) < 0.99 * float(errors[0].sum())


def test_smaller_groups_and_finer_scales_lose_less() -> None:
    w_OI = weight(64, 128)
    errors = [float((fake_quantize_weight(w_OI, spec(each)) - w_OI).norm()) for each in FORMATS]
    assert errors[0] < 0.95 * errors[1] < 0.2 * float(w_OI.norm())


@pytest.mark.parametrize("number_format", FORMATS)
def test_gradient_goes_straight_through_the_rounding_of_codes_and_scales(number_format: NumberFormat) -> None:
    grid = grid_of(number_format)
    assert grid is not None
    generator = torch.Generator().manual_seed(4)
    values, upstream = torch.randn(2, 5, 16, dtype=torch.float64, generator=generator)
    grid = grid.fitted(values)
    ours, reference = values.clone().requires_grad_(), values.clone().requires_grad_()
    fake_quantize_on_grid(ours, grid=grid).backward(upstream)
    wanted = reference.abs().amax(dim=-1, keepdim=True) / 6
    scale = wanted + (grid.step(values.abs().amax(dim=-1, keepdim=True), 1.0) - wanted).detach()
    ratio = (reference / scale).clamp(-6, 6)
    ((ratio + (nearest_by_search(ratio.detach()) - ratio).detach()) * scale).backward(upstream)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-9)


def test_an_unfitted_grid_has_no_scales() -> None:
    with pytest.raises(ValueError, match="fitted"):
        NvFloat4Grid().step(torch.ones(1, 1), 1.0)


@pytest.mark.parametrize(("number_format", "width"), [(NumberFormat.NVFP4, 24), (NumberFormat.MXFP4, 48)])
def test_groups_that_do_not_divide_are_refused_by_name(number_format: NumberFormat, width: int) -> None:
    message = rf"{number_format.value}, whose groups of {number_format.group_size} do not divide a layer's {width}"
    with pytest.raises(UnsupportedPolicy, match=rf"weights.*{message}.*ignore"):
        quantize_weight(weight(4, width), spec(number_format))
    with pytest.raises(UnsupportedPolicy, match=rf"activations.*{message}"):
        fake_quantize_activation(torch.ones(2, width), ActivationQuantization(format=number_format))
