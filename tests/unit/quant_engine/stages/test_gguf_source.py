"""Diagonals that float16 can hold, and weights that it can not."""

import pytest
import torch

from quant_engine.errors import NumericalInstability
from quant_engine.stages.gguf_source.fused_files import bounded_scales, halves


def test_a_diagonal_is_taken_up_to_a_common_factor() -> None:
    scales_D = torch.tensor([2.0, 8.0, 32.0])
    assert torch.allclose(bounded_scales(scales_D), torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64))
    assert torch.allclose(bounded_scales(1e6 * scales_D), bounded_scales(scales_D))


def test_a_channel_that_is_never_active_gets_a_factor_that_float16_can_hold() -> None:
    scales_D = torch.cat([torch.full((1,), 1e-5), torch.full((63,), 10.0)])
    found_D = bounded_scales(scales_D)
    assert float(found_D.min()) == pytest.approx(2.0**-8)
    assert 1.0 < float(found_D.max()) < 2.0


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_a_weight_that_float16_can_not_hold_is_named(value: float) -> None:
    with pytest.raises(NumericalInstability, match="norm has values that float16 can not hold"):
        halves({"norm": torch.tensor([1.0, value])})
