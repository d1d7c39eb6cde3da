"""The kurtosis of a site's weights, its robust score, and the rule that tells two transforms apart by it."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant_engine.errors import NumericalInstability
from quant_engine.selection import by_kurtosis, fit_kurtosis, grouped_z, robust_z, weight_kurtosis


def test_kurtosis_is_that_of_all_weights_together() -> None:
    generator = torch.Generator().manual_seed(0)
    linears = [0.1 * torch.randn(1500, 24, generator=generator) + 0.3, torch.randn(10, 24, generator=generator) - 0.2]
    values = torch.cat(linears).double().flatten()
    z = (values - values.mean()) / values.std(correction=0)
    assert weight_kurtosis(linears) == pytest.approx(float((z**4).mean()), rel=1e-9)


def test_kurtosis_of_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    assert weight_kurtosis([torch.randn(400, 500, generator=generator)]) == pytest.approx(3.0, rel=0.02)
    assert weight_kurtosis([torch.rand(400, 500, generator=generator)]) == pytest.approx(1.8, rel=0.02)
    assert weight_kurtosis([torch.tensor([[1.0, -1.0]])]) == 1.0


def test_kurtosis_ignores_scale_and_place() -> None:
    w_OI = torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert weight_kurtosis([1e-3 * w_OI - 5.0]) == pytest.approx(weight_kurtosis([w_OI]), rel=1e-6)


def test_kurtosis_of_equal_weights_is_the_least_there_is() -> None:
    assert weight_kurtosis([torch.zeros(4, 4)]) == 1.0
    assert weight_kurtosis([torch.full((4, 3), 0.1)]) == 1.0


def test_kurtosis_refuses_what_is_not_a_number() -> None:
    with pytest.raises(NumericalInstability):
        weight_kurtosis([torch.tensor([[1.0, float("nan")]])])
    with pytest.raises(ValueError, match="at least one weight"):
        weight_kurtosis([])


def test_robust_z_by_hand() -> None:
    """Median 4, distances 3 1 0 2 96, whose median is 2."""
    assert robust_z([1.0, 3.0, 4.0, 6.0, 100.0]) == pytest.approx([0.6745 * d / 2.0 for d in (-3, -1, 0, 2, 96)])
    assert robust_z([5.0]) == (0.0,)
    with pytest.raises(ValueError, match="at least one value"):
        robust_z([])


def test_scores_are_within_a_group() -> None:
    kappas = {"q": 3.0, "down": 30.0, "o": 5.0, "up": 10.0, "k": 4.0}
    groups = {"q": "attention", "o": "attention", "k": "attention", "up": "feed_forward", "down": "feed_forward"}
    scores = grouped_z(kappas, groups)
    assert list(scores) == list(kappas)
    assert scores == pytest.approx({"q": -0.6745, "k": 0.0, "o": 0.6745, "up": -0.6745, "down": 0.6745})


@pytest.mark.parametrize(("sign", "expected"), [(1, {"c"}), (-1, {"a"})])
def test_the_sign_picks_the_tail(sign: Literal[-1, 1], expected: set[str]) -> None:
    kappas = {"a": 1.0, "b": 3.0, "c": 9.0}
    labels = by_kurtosis(kappas, dict.fromkeys(kappas, "attention"), sign=sign, beta=0.5)
    assert {site for site, outlying in labels.items() if outlying} == expected


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("beta", [-0.5, 0.7, 1.5])
def test_a_planted_rule_is_found(sign: Literal[-1, 1], beta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    kappas = {f"site{i}": 3.0 + float(torch.rand((), generator=generator)) ** 4 for i in range(40)}
    groups = {site: ("attention", "feed_forward")[i % 2] for i, site in enumerate(kappas)}
    labels = by_kurtosis(kappas, groups, sign=sign, beta=beta)
    fit = fit_kurtosis(kappas, groups, labels)
    assert fit.agreement == 1.0
    assert by_kurtosis(kappas, groups, sign=fit.sign, beta=fit.beta) == labels


@given(
    sites=st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0, 40.0]), st.booleans()), min_size=1, max_size=12)
)
def test_no_rule_agrees_better(sites: list[tuple[float, bool]]) -> None:
    kappas = {str(i): kappa for i, (kappa, _) in enumerate(sites)}
    labels = {str(i): label for i, (_, label) in enumerate(sites)}
    groups = dict.fromkeys(kappas, "attention")
    fit = fit_kurtosis(kappas, groups, labels)

    def agreement(sign: Literal[-1, 1], beta: float) -> float:
        found = by_kurtosis(kappas, groups, sign=sign, beta=beta)
        return sum(found[site] == label for site, label in labels.items()) / len(labels)

    assert fit.agreement == agreement(fit.sign, fit.beta)
    scores = list(grouped_z(kappas, groups).values())
    tried = [(sign, sign * z + step) for sign in (1, -1) for z in scores for step in (-1e-3, 0.0)]
    assert fit.agreement >= max(agreement(sign, beta) for sign, beta in tried)  # type: ignore[arg-type]  # 1 and -1


def test_a_fit_needs_sites() -> None:
    with pytest.raises(ValueError, match="at least one site"):
        fit_kurtosis({}, {}, {})
