"""A policy's rounding is the one that runs."""

from typing import Literal

import pytest
import torch

from quant_engine.errors import NumericalInstability
from quant_engine.grids import fake_quantize_weight
from quant_engine.policy import WeightQuantization
from quant_engine.rounding import factorize, gptq, round_to_nearest, round_weight
from tests.unit.quant_engine.outliers import massive_input, weight


def spec(rounding: Literal["rtn", "gptq"], clip: Literal["none", "mse"] = "mse") -> WeightQuantization:
    return WeightQuantization(rounding=rounding, clip=clip)


def test_each_name_runs_its_rounding() -> None:
    x_TI, w_OI = massive_input(64, 24, massive=10.0), weight(8, 24)
    hessian_II = x_TI.T @ x_TI
    nearest = round_weight(w_OI, spec("rtn"), torch.bfloat16, hessian=hessian_II)
    assert torch.equal(nearest.codes, round_to_nearest(w_OI, spec("rtn"), torch.bfloat16).codes)
    expected = gptq(w_OI, hessian_II, spec("gptq"), torch.bfloat16)
    assert not torch.equal(expected.codes, nearest.codes)
    for hessian in (hessian_II, factorize(hessian_II, spec("gptq").gptq)):
        found = round_weight(w_OI, spec("gptq"), torch.bfloat16, hessian=hessian)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scale, expected.scale)


def test_gptq_needs_a_hessian() -> None:
    with pytest.raises(ValueError, match="Hessian"):
        round_weight(weight(8, 24), spec("gptq"), torch.float32)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_a_learned_clip_reaches_every_rounding(rounding: Literal["rtn", "gptq"]) -> None:
    w_OI, ratio_R1 = weight(8, 24), torch.linspace(0.5, 1.0, 8).reshape(8, 1).requires_grad_()
    found = round_weight(w_OI, spec(rounding), torch.float32, hessian=torch.eye(24), clip_ratio_R1=ratio_R1)
    assert torch.equal(found.dequantize(), fake_quantize_weight(w_OI, spec(rounding), clip_ratio_R1=ratio_R1))
    assert not found.scale.requires_grad


def test_round_to_nearest_honours_the_clip() -> None:
    w_OI = weight(8, 96)
    clipped, plain = (round_weight(w_OI, spec("rtn", clip), torch.float32) for clip in ("mse", "none"))
    assert (clipped.dequantize() - w_OI).norm() < (plain.dequantize() - w_OI).norm()
    assert torch.equal(clipped.dequantize(), fake_quantize_weight(w_OI, spec("rtn")))


def test_scales_that_half_precision_can_not_hold() -> None:
    tiny = round_weight(torch.full((2, 16), 1e-9), spec("rtn", "none"), torch.float16)
    assert tiny.scale.tolist() == [[1.0], [1.0]]
    assert not tiny.codes.any()
    with pytest.raises(NumericalInstability, match=r"torch\.float16"):
        round_weight(torch.full((2, 16), 1e9), spec("rtn", "none"), torch.float16)


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(rounding: Literal["rtn", "gptq"], value: float) -> None:
    w_OI = weight(8, 24)
    w_OI[2, 3] = value
    with pytest.raises(NumericalInstability, match="not finite"):
        round_weight(w_OI, spec(rounding), torch.float32, hessian=torch.eye(24))
