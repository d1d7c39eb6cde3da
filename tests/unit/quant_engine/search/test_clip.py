"""The searched clip is the best of the grid by a dense definition, and the report has the checkpoint's grid."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quant_engine.checkpoint import OnlineInput, served_input
from quant_engine.grids import fake_quantize_activation
from quant_engine.online.grid import ServedIntegers
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
    """‖(X' − Q(X')) W'ᵀ‖_F of every ratio, in fp64, on the grid of engines."""
    assert plan.scales_D is not None
    scales_D = plan.scales_D.double()
    rotation_II = matrix_of(plan.online[0], WIDTH, torch.float64)
    rotated_TI = x_TI.double() / scales_D @ rotation_II
    w_OI = torch.cat(_linears()).double() * scales_D @ torch.linalg.inv(rotation_II).T
    errors = []
    for ratio in RATIOS:
        scale_T1 = ratio * rotated_TI.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
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
def test_layer_errors_and_the_checkpoint_round_to_equal_values(format_: NumberFormat, ratio: float) -> None:
    """And these are the grid of engines: absmax, or the clipped part of it, is the last code."""
    bits = format_.bits
    assert bits is not None
    plan = replace(_plan(), clip_ratio=ratio)
    x_TI = transform_activation(_tokens(3), plan)
    reported_TI = fake_quantize_activation(x_TI, plan.clipped(_activations(format_)))
    online = OnlineInput(clip_ratio=plan.clip_of(_activations(format_)))
    served_TI = served_input(x_TI, online, ServedIntegers(bits))
    assert torch.equal(reported_TI, served_TI)
    scale_T1 = ratio * x_TI.abs().amax(dim=-1, keepdim=True).double() / (2 ** (bits - 1) - 1)
    codes_TI = (served_TI.double() / scale_T1).round()
    assert torch.allclose(served_TI.double(), codes_TI * scale_T1, rtol=1e-5)
    assert int(codes_TI.max()) == 2 ** (bits - 1) - 1
    assert int(codes_TI.min()) >= -(2 ** (bits - 1))
    ratio_TI = x_TI.double() / scale_T1
    off_ties = (ratio_TI.abs().frac() - 0.5).abs() > 1e-4
    expected_TI = ratio_TI.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(codes_TI[off_ties], expected_TI[off_ties])
