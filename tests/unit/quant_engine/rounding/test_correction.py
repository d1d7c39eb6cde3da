"""The refitted weight against the stacked least-squares system that defines it."""

import pytest
import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.rounding import corrected_weight
from tests.unit.quant_engine.outliers import massive_input, weight

TOKENS, OUTPUTS, WIDTH = 100, 12, 24


def inputs() -> tuple[Tensor, Tensor]:
    """X and a noisy X̂."""
    x_TI = massive_input(TOKENS, WIDTH, massive=30.0, dtype=torch.float64)
    noise_TI = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return x_TI, x_TI + 0.3 * noise_TI * x_TI.std(dim=0)


@pytest.mark.parametrize("damping", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_it_is_the_least_squares_of_the_stacked_system(damping: float, strength: float) -> None:
    x_TI, quantized_TI = inputs()
    w_OI = weight(OUTPUTS, WIDTH, dtype=torch.float64)
    hessian_II = quantized_TI.T @ quantized_TI
    root = (damping * hessian_II.diagonal().mean()).sqrt() * torch.eye(WIDTH, dtype=torch.float64)
    best_IO = torch.linalg.lstsq(torch.cat([quantized_TI, root]), torch.cat([x_TI @ w_OI.T, root @ w_OI.T])).solution
    found_OI = corrected_weight(w_OI, x_TI.T @ quantized_TI, hessian_II, strength=strength, damping=damping)
    torch.testing.assert_close(found_OI, (1 - strength) * w_OI + strength * best_IO.T, rtol=1e-7, atol=1e-9)


def test_the_output_comes_closer_as_the_strength_grows() -> None:
    x_TI, quantized_TI = inputs()
    w_OI = weight(OUTPUTS, WIDTH, dtype=torch.float64)
    errors = []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        found_OI = corrected_weight(
            w_OI, x_TI.T @ quantized_TI, quantized_TI.T @ quantized_TI, strength=strength, damping=0.001
        )
        errors.append(float((x_TI @ w_OI.T - quantized_TI @ found_OI.T).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


def test_nothing_to_correct_leaves_the_weight_alone() -> None:
    x_TI, quantized_TI = inputs()
    w_OI = weight(OUTPUTS, WIDTH)
    hessian_II = (x_TI.T @ x_TI).float()
    same_OI = corrected_weight(w_OI, hessian_II, hessian_II, strength=1.0, damping=0.01)
    assert same_OI.dtype is torch.float32
    assert torch.equal(same_OI, w_OI)
    cross_II = (x_TI.T @ quantized_TI).float()
    assert corrected_weight(w_OI, cross_II, hessian_II, strength=0.0, damping=0.01) is w_OI
    nothing_II = torch.zeros(WIDTH, WIDTH)
    assert torch.equal(corrected_weight(w_OI, nothing_II, nothing_II, strength=1.0, damping=0.01), w_OI)


def test_weights_of_a_site_may_be_stacked() -> None:
    x_TI, quantized_TI = inputs()
    cross_II, hessian_II = x_TI.T @ quantized_TI, quantized_TI.T @ quantized_TI
    parts = [weight(OUTPUTS, WIDTH, seed=seed, dtype=torch.float64) for seed in (1, 2)]
    stacked_OI = corrected_weight(torch.cat(parts), cross_II, hessian_II, strength=1.0, damping=0.01)
    alone = [corrected_weight(each, cross_II, hessian_II, strength=1.0, damping=0.01) for each in parts]
    torch.testing.assert_close(stacked_OI, torch.cat(alone))


def test_what_is_not_finite_is_refused() -> None:
    x_TI, quantized_TI = inputs()
    w_OI = weight(OUTPUTS, WIDTH)
    cross_II, hessian_II = x_TI.T @ quantized_TI, quantized_TI.T @ quantized_TI
    with pytest.raises(NumericalInstability, match="original and quantized"):
        corrected_weight(w_OI, cross_II * torch.inf, hessian_II, strength=1.0, damping=0.01)
    with pytest.raises(NumericalInstability, match="Hessian"):
        corrected_weight(w_OI, cross_II, hessian_II * torch.inf, strength=1.0, damping=0.01)
