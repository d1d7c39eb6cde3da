"""How engines round inputs in groups and with zero points, against the definition in fp64 and in the reports' grid."""

import pytest
import torch
from torch import Tensor

from quant_engine.grids import fake_quantize_activation
from quant_engine.online.grid import ServedIntegers, rounded_token
from quant_engine.policy import ActivationQuantization, NumberFormat


def _tokens(seed: int = 0, *, width: int = 32) -> Tensor:
    x_TI = torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    x_TI[1] = x_TI[1].abs() + 3.0  # all of one sign
    x_TI[2] *= torch.logspace(-3, 3, width)
    x_TI[3] = 0.0
    x_TI[4] = 2.5
    return x_TI


@pytest.mark.parametrize("size", [8, 16, 32])
def test_every_group_is_rounded_like_a_token(size: int) -> None:
    x_TI = _tokens()
    found_TI = ServedIntegers(4, size).rounded(x_TI)
    for first in range(0, 32, size):
        group = slice(first, first + size)
        assert torch.equal(found_TI[:, group], rounded_token(x_TI[:, group].contiguous(), 4))
    assert not torch.equal(found_TI[2], rounded_token(x_TI, 4)[2]) or size == 32


def test_a_zero_point_spreads_the_codes_from_the_smallest_to_the_largest_value() -> None:
    x_TI = _tokens()
    found_TI = ServedIntegers(8, symmetric=False).rounded(x_TI)
    for x_I, found_I in zip(x_TI[:3].double(), found_TI[:3].double(), strict=True):
        scale = (x_I.max() - x_I.min()) / 255
        zero = (-128 - x_I.min() / scale).round()
        codes_I = ((x_I / scale).round() + zero).clamp(-128, 127)
        assert torch.allclose(found_I, (codes_I - zero) * scale, atol=float(scale) * 1e-3)
        assert float((found_I - x_I).abs().max()) <= float(scale) * 1.01
    # A token of one value is that value.
    assert torch.equal(found_TI[3:], x_TI[3:])
    # Values of one sign get twice the resolution, or more.
    symmetric_TI = ServedIntegers(8).rounded(x_TI)
    assert float((found_TI[1] - x_TI[1]).norm()) < 0.6 * float((symmetric_TI[1] - x_TI[1]).norm())


@pytest.mark.parametrize("fields", [{"granularity": "group", "group_size": 16}, {"symmetric": False}])
def test_layer_errors_round_as_the_checkpoint_and_let_gradients_through(fields: dict[str, object]) -> None:
    x_TI = _tokens(1)
    spec = ActivationQuantization.model_validate({"format": NumberFormat.INT8, **fields})
    served = ServedIntegers(8, spec.group_size, spec.symmetric)
    assert torch.equal(fake_quantize_activation(x_TI, spec), served.rounded(x_TI))
    learned_TI = x_TI.clone().requires_grad_()
    fake_quantize_activation(learned_TI, spec).sum().backward()
    assert learned_TI.grad is not None
    assert bool((learned_TI.grad[0] != 0).any())


def test_half_precision_is_rounded_in_fp32() -> None:
    x_TI = _tokens().bfloat16()
    for served in (ServedIntegers(8, 8), ServedIntegers(8, symmetric=False)):
        assert torch.equal(served.rounded(x_TI), served.rounded(x_TI.float()).bfloat16())
