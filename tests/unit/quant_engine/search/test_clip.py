"""The searched clip is the best of the grid by a dense definition, and one scale serves the report and the run time."""

from dataclasses import replace

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor

from quant_engine.checkpoint import OnlineInput, transformed_input
from quant_engine.grids import fake_quantize_activation
from quant_engine.policy import ActivationQuantization, NumberFormat, TransformKind
from quant_engine.search import search_clip
from quant_engine.search.clip import RATIOS
from quant_engine.transforms import SitePlan, transform_activation
from quant_engine.transforms.primitives import Hadamard
from tests.unit.quant_engine.definitions import matrix_of

TOKENS, WIDTH = 96, 64


def _activations(format_: NumberFormat) -> ActivationQuantization:
    return ActivationQuantization(format=format_, clip="search")


def _tokens(seed: int = 0, *, tails: float = 1.0) -> Tensor:
    """Tokens whose entries are the more heavy-tailed, the larger ``tails`` is."""
    x_TI = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return x_TI.sign() * x_TI.abs() ** tails


def _linears() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(rows, WIDTH, generator=generator) for rows in (24, 40)]


def _plan() -> SitePlan:
    scales_D = torch.linspace(0.5, 2.0, WIDTH)
    return SitePlan(kind=TransformKind.SMOOTH_ROTATION, scales_D=scales_D, online=(Hadamard(order=WIDTH),))


def _dense_errors(x_TI: Tensor, plan: SitePlan, bits: int) -> list[float]:
    """‖(X' − Q(X')) W'ᵀ‖_F of every ratio, in fp64, the scale that of the run time."""
    assert plan.scales_D is not None
    scales_D = plan.scales_D.double()
    rotation_II = matrix_of(plan.online[0], WIDTH, torch.float64)
    rotated_TI = x_TI.double() / scales_D @ rotation_II
    w_OI = torch.cat(_linears()).double() * scales_D @ torch.linalg.inv(rotation_II).T
    errors = []
    for ratio in RATIOS:
        scale_T1 = ratio * rotated_TI.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        codes_TI = (rotated_TI / scale_T1).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        errors.append(float(((codes_TI * scale_T1 - rotated_TI) @ w_OI.T).norm()))
    return errors


@pytest.mark.parametrize("tails", [0.3, 1.0, 1.6])
@pytest.mark.parametrize("format_", [NumberFormat.INT3, NumberFormat.INT4, NumberFormat.INT6])
def test_the_search_finds_the_best_of_the_grid(format_: NumberFormat, tails: float) -> None:
    bits = format_.bits
    assert bits is not None
    x_TI = _tokens(tails=tails)
    errors = _dense_errors(x_TI, _plan(), bits)
    assert len({round(error, 6) for error in errors}) == len(RATIOS)  # they differ, so one of them is the best
    found = search_clip(x_TI, _linears(), _plan(), _activations(format_))
    assert found == RATIOS[errors.index(min(errors))]


def test_fewer_bits_are_clipped_more() -> None:
    found = [
        search_clip(_tokens(), _linears(), _plan(), _activations(format_))
        for format_ in (NumberFormat.INT3, NumberFormat.INT4, NumberFormat.INT8)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_the_larger_of_equals_is_taken() -> None:
    """Nothing is lost on tokens of zeros, whatever the ratio."""
    assert search_clip(torch.zeros(4, WIDTH), _linears(), _plan(), _activations(NumberFormat.INT4)) == 1.0


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("format_", [NumberFormat.INT4, NumberFormat.INT8])
def test_layer_errors_and_the_run_time_round_to_equal_codes(format_: NumberFormat, ratio: float) -> None:
    """But on ties: a clipped value lies half a step beyond the run time's last code, and may take the next."""
    bits = format_.bits
    assert bits is not None
    plan = replace(_plan(), clip_ratio=ratio)
    x_TI = transform_activation(_tokens(3), plan)
    reported_TI = fake_quantize_activation(x_TI, plan.clipped(_activations(format_)))
    online = OnlineInput(clip_ratio=plan.runtime_clip(_activations(format_)))
    arguments = QuantizationArgs(
        num_bits=bits,
        type=QuantizationType.INT,
        symmetric=True,
        strategy=QuantizationStrategy.TOKEN,
        dynamic=True,
    )
    clipped_BTI = transformed_input(x_TI, online)[None]
    scale_BT1, zero_BT1 = compute_dynamic_scales_and_zp(clipped_BTI, arguments, None)
    run_TI = fake_quantize(clipped_BTI, scale_BT1, zero_BT1, arguments)[0]
    scale_T1 = scale_BT1[0]
    expected_T1 = ratio * x_TI.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
    assert torch.allclose(scale_T1, expected_T1, rtol=1e-6)
    codes_TI, run_codes_TI = (each / scale_T1 for each in (reported_TI, run_TI))
    tie_TI = clipped_BTI[0] <= -clipped_BTI[0].abs().amax(dim=-1, keepdim=True)
    assert torch.equal(codes_TI.round()[~tie_TI], run_codes_TI.round()[~tie_TI])
    assert bool((codes_TI[tie_TI].round() <= -(2 ** (bits - 1) - 1)).all())
    assert bool((run_codes_TI[tie_TI].round() <= -(2 ** (bits - 1) - 1)).all())
    assert int(codes_TI.round().max()) == 2 ** (bits - 1) - 1
