"""Weights with zero points, against compressed-tensors and the definition in fp64."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from quant_engine.grids import codes_on_scale, fake_quantize_weight, weight_scale, weight_zero_points
from quant_engine.policy import GptqSettings, WeightQuantization
from quant_engine.rounding import gptq, round_to_nearest


def _weight(seed: int = 0) -> Tensor:
    w_OI = torch.randn(12, 32, generator=torch.Generator().manual_seed(seed))
    w_OI[0] = w_OI[0].abs() + 1.0  # of one sign
    w_OI[1] = -w_OI[1].abs()
    w_OI[2:] += 0.3
    w_OI[11] = 0.0
    return w_OI


def _spec(**fields: object) -> WeightQuantization:
    return WeightQuantization.model_validate({"granularity": "group", "group_size": 16, "symmetric": False, **fields})


def test_scales_and_zero_points_are_those_of_compressed_tensors() -> None:
    w_OI = _weight()[:11]  # its scale of a row of zeros is another, with the same codes
    arguments = QuantizationArgs(num_bits=4, strategy=QuantizationStrategy.GROUP, group_size=16, symmetric=False)
    rows_OGI = w_OI.unflatten(-1, (2, 16))
    scale, zero = calculate_qparams(rows_OGI.amin(-1), rows_OGI.amax(-1), arguments)
    assert torch.allclose(weight_scale(w_OI, _spec()), scale, rtol=1e-6)
    found = weight_zero_points(w_OI, _spec())
    assert found is not None
    assert torch.equal(found, zero.float())


@pytest.mark.parametrize("granularity", ["channel", "group"])
@pytest.mark.parametrize("clip", ["none", "mse"])
def test_codes_are_the_nearest_and_dequantize_to_the_weight(granularity: str, clip: str) -> None:
    w_OI = _weight(1)
    spec = _spec(granularity=granularity, group_size=16 if granularity == "group" else None, clip=clip)
    found = round_to_nearest(w_OI, spec, torch.float32)
    assert found.zero_point is not None
    assert found.zero_point.shape == found.scale.shape
    groups = found.scale.shape[1]
    scale, zero = (each.double().repeat_interleave(32 // groups, dim=1) for each in (found.scale, found.zero_point))
    codes = ((w_OI.double() / scale).round() + zero).clamp(-8, 7)
    assert int((codes != found.codes.double()).sum()) <= 1  # a tie
    assert torch.allclose(found.dequantize().double(), (found.codes.double() - zero) * scale, atol=1e-6)
    assert torch.allclose(found.dequantize(), fake_quantize_weight(w_OI, spec), atol=1e-6)
    assert torch.equal(codes_on_scale(w_OI, spec, found.scale).codes, found.codes)
    assert bool((found.dequantize()[11] == 0).all())


def test_a_zero_point_is_better_for_values_of_one_sign_and_a_clip_is_never_worse() -> None:
    w_OI = _weight(2)

    def error(**fields: object) -> Tensor:
        return (fake_quantize_weight(w_OI, _spec(**fields)) - w_OI).square().sum(dim=1)

    assert float(error()[0]) < 0.5 * float(error(symmetric=True)[0])
    assert bool((error(clip="mse") <= error() + 1e-6).all())


def test_gptq_rounds_to_the_same_grid_and_loses_less() -> None:
    generator = torch.Generator().manual_seed(5)
    x_TI = torch.randn(256, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    w_OI, spec = _weight(3), _spec(rounding="gptq", gptq=GptqSettings(block_size=8))
    found, nearest = gptq(w_OI, x_TI.T @ x_TI, spec, torch.float32), round_to_nearest(w_OI, spec, torch.float32)
    assert found.zero_point is not None
    assert nearest.zero_point is not None
    assert torch.equal(found.scale, nearest.scale)
    assert torch.equal(found.zero_point, nearest.zero_point)
    assert int(found.codes.min()) >= -8
    assert int(found.codes.max()) <= 7
    losses = [float((x_TI @ (each.dequantize() - w_OI).T).norm()) for each in (found, nearest)]
    assert losses[0] < 0.8 * losses[1]


def test_a_learned_clip_gets_a_gradient() -> None:
    w_OI, ratio_R1 = _weight(4), torch.full((24, 1), 0.8, requires_grad=True)
    fake_quantize_weight(w_OI, _spec(), clip_ratio_R1=ratio_R1).square().sum().backward()
    assert ratio_R1.grad is not None
    assert int((ratio_R1.grad != 0).sum()) >= 20
