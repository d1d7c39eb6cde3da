"""Statistics against numpy, scale policies against their formula in plain Python."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_engine.errors import NumericalInstability, UnsupportedPolicy
from quant_engine.policy import Statistic, Transform
from quant_engine.transforms import build_plan, scale_policy
from tests.unit.quant_engine.definitions import abs_quantile, channel_statistics
from tests.unit.quant_engine.outliers import massive_input, weight


@settings(deadline=None, max_examples=60)
@given(tokens=st.integers(1, 70), q=st.floats(0.0, 1.0), seed=st.integers(0, 2**31))
def test_quantiles_are_numpys(tokens: int, q: float, seed: int) -> None:
    x_TD = torch.randn(tokens, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = np.quantile(np.abs(x_TD.numpy()), q, axis=0)
    np.testing.assert_allclose(abs_quantile(x_TD, q).numpy(), expected, rtol=1e-12)


def test_statistics() -> None:
    x_TD = massive_input(200, 24)
    stats = channel_statistics(x_TD, (0.95, 0.997))
    magnitude = np.abs(x_TD.double().numpy())
    np.testing.assert_allclose(stats.absmax_D, magnitude.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats.l2_D, np.sqrt((magnitude**2).sum(axis=0)), rtol=1e-6)
    np.testing.assert_allclose(stats.quantiles[0.997], np.quantile(magnitude, 0.997, axis=0), rtol=1e-5)
    assert sorted(stats.quantiles) == [0.95, 0.997]
    assert stats.tokens == 200
    assert stats.absmax_D.dtype is torch.float32


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["absmax", "quantile", "l2"])
def test_scales_are_the_formula(kind: str, alpha: float) -> None:
    x_TD, w_OD = massive_input(50, 12, dtype=torch.float64), weight(6, 12, dtype=torch.float64)
    statistic = Statistic.model_validate({"kind": kind, "q": 0.9 if kind == "quantile" else 1.0})
    found = scale_policy(channel_statistics(x_TD, (0.9,)), w_OD, alpha, statistic)
    for j, scale in enumerate(found.tolist()):
        x, w = [abs(v) for v in x_TD[:, j].tolist()], [abs(v) for v in w_OD[:, j].tolist()]
        of_x = {"absmax": max(x), "quantile": float(np.quantile(x, 0.9)), "l2": sum(v * v for v in x) ** 0.5}[kind]
        of_w = sum(v * v for v in w) ** 0.5 if kind == "l2" else max(w)
        assert scale == pytest.approx(of_x**alpha / of_w ** (1 - alpha), rel=1e-5)


def test_quantile_one_is_the_maximum_without_being_recorded() -> None:
    x_TD, w_OD = massive_input(50, 12), weight(6, 12)
    stats = channel_statistics(x_TD)
    maximum = scale_policy(stats, w_OD, 0.5, Statistic(kind="absmax"))
    assert torch.equal(scale_policy(stats, w_OD, 0.5, Statistic(kind="quantile", q=1.0)), maximum)


def test_l2_balances_the_two_norms() -> None:
    """At α = 0.5 it minimizes ‖X Λ⁻¹‖_F ‖W Λ‖_F (Cauchy and Schwarz): no other scale policy does better."""
    x_TD, w_OD = massive_input(50, 12, dtype=torch.float64), weight(6, 12, dtype=torch.float64)
    scales_D = scale_policy(channel_statistics(x_TD), w_OD, 0.5, Statistic(kind="l2")).double()
    lower_bound = float((x_TD.norm(dim=0) * w_OD.norm(dim=0)).sum())
    assert float((x_TD / scales_D).norm() * (w_OD * scales_D).norm()) == pytest.approx(lower_bound, rel=1e-6)


@pytest.mark.parametrize("kind", ["absmax", "l2"])
def test_dead_channels_are_clamped(kind: str) -> None:
    x_TD, w_OD = massive_input(50, 12), weight(6, 12)
    x_TD[:, 1], w_OD[:, 2] = 0.0, 0.0
    x_TD[:, 4], w_OD[:, 4] = 0.0, 0.0
    scales_D = scale_policy(channel_statistics(x_TD), w_OD, 0.5, Statistic.model_validate({"kind": kind}))
    assert scales_D[1].item() == pytest.approx(1e-5)
    assert scales_D[4].item() == pytest.approx(1e-5)
    assert torch.isfinite(scales_D).all()
    assert (scales_D > 0).all()


def test_an_unknown_quantile_is_named() -> None:
    stats = channel_statistics(massive_input(50, 12), (0.95, 0.99))
    with pytest.raises(KeyError, match=r"0\.997.*0\.95, 0\.99"):
        scale_policy(stats, weight(6, 12), 0.5, Statistic(kind="quantile", q=0.997))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_is_an_error(value: float) -> None:
    x_TD = massive_input(50, 12)
    x_TD[7, 5] = value
    with pytest.raises(NumericalInstability, match="1 channels"):
        scale_policy(channel_statistics(x_TD), weight(6, 12), 0.5, Statistic())


def test_a_block_size_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UnsupportedPolicy, match="64"):
        build_plan(Transform(block_size=64), channel_statistics(massive_input(50, 96)), weight(6, 96))
