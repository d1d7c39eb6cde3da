"""s = softplus(θ) + 1e-5, and its inverse over all the scales that occur."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant_engine.training.scale_parameter import scales_from, theta_from


@given(st.floats(2e-5, 1e8))
def test_there_and_back(scale: float) -> None:
    s = torch.tensor([scale], dtype=torch.float64)
    assert float(scales_from(theta_from(s))) == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 0.5, 1.0, 19.0, 21.0, 500.0, 1e6])
def test_float32_is_finite_and_true(scale: float) -> None:
    theta = theta_from(torch.tensor([scale]))
    assert torch.isfinite(theta).all()
    assert float(scales_from(theta)) == pytest.approx(scale, rel=2e-2 if scale <= 1e-4 else 1e-5)


def test_it_is_the_logarithm_of_expm1() -> None:
    assert float(theta_from(torch.tensor([2.0], dtype=torch.float64))) == pytest.approx(
        math.log(math.expm1(2.0 - 1e-5))
    )


@given(st.floats(-1e6, 1e6))
def test_scales_stay_positive(theta: float) -> None:
    assert float(scales_from(torch.tensor([theta]))) >= 0.999e-5
