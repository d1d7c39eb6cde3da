"""What each kind of selection makes of measured candidates."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from quant_engine.errors import NumericalInstability
from quant_engine.policy import AnySelection, Differentiable, Kurtosis, LowestError, TransformKind
from quant_engine.selection import CandidateMeasurements, Mixture, Tails, candidates_of, choose_candidate


def _mixture(_settings: Differentiable, usable: Sequence[int]) -> Mixture:
    """The last usable one weighs half, the others share the rest."""
    rest = 0.5 / max(1, len(usable) - 1)
    return Mixture(weights=(*[rest] * (len(usable) - 1), 0.5), index=len(usable) - 1, loss=0.3)


def _choices(errors: Sequence[float], **fields: Any) -> CandidateMeasurements:
    defaults: dict[str, Any] = {
        "costs": [0.0] * len(errors),
        "places": tuple(range(len(errors))),
        "mixture": _mixture,
        "tails": Tails(kurtosis=4.0, z=1.0, outlying=True),
    }
    return CandidateMeasurements(errors=errors, **(defaults | fields))


def test_online_cost_counts_against_an_error() -> None:
    choices = _choices([10.0, 9.5, 9.0], costs=[0.0, 0.1, 1.0])
    assert choose_candidate(LowestError(), choices).index == 2
    dear = choose_candidate(LowestError(online_cost=0.3), choices)
    assert dear.index == 1
    assert dear.columns["score"] == pytest.approx([10.0, 9.5 * 1.03, 9.0 * 1.3])
    assert choose_candidate(LowestError(online_cost=5.0), choices).index == 0


@pytest.mark.parametrize(("outlying", "index"), [(True, 0), (False, 1)])
def test_kurtosis_keeps_the_one_that_the_rule_says(outlying: bool, index: int) -> None:
    tails = Tails(kurtosis=4.0, z=1.0, outlying=outlying)
    verdict = choose_candidate(Kurtosis(), _choices([3.0, 2.0], tails=tails))
    assert verdict.index == index
    assert verdict.facts == {"kurtosis": 4.0, "z": 1.0, "outlying": outlying}


def test_kurtosis_with_two_that_coincide() -> None:
    assert choose_candidate(Kurtosis(), _choices([3.0], places=(0, 0))).index == 0


def test_kurtosis_needs_its_tails() -> None:
    with pytest.raises(ValueError, match="every site"):
        choose_candidate(Kurtosis(), _choices([1.0, 2.0], tails=None))


def test_the_heaviest_is_kept() -> None:
    verdict = choose_candidate(Differentiable(), _choices([1.0, 2.0, 3.0]))
    assert verdict.index == 2
    assert verdict.columns["weight"] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("selection", [LowestError(), Kurtosis(), Differentiable()])
@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_none_stays_on_a_candidate_that_is_not_finite(selection: AnySelection, broken: float) -> None:
    assert choose_candidate(selection, _choices([broken, 7.0])).index == 1
    assert choose_candidate(selection, _choices([7.0, broken])).index == 0
    with pytest.raises(NumericalInstability, match="finite"):
        choose_candidate(selection, _choices([broken, broken]))


def test_weights_of_what_can_not_be_used_are_zero() -> None:
    assert choose_candidate(Differentiable(), _choices([1.0, math.inf, 3.0])).columns["weight"] == [0.5, 0.0, 0.5]


def test_candidates_of_every_selection() -> None:
    kinds = (TransformKind.NONE, TransformKind.CAT)
    assert candidates_of(LowestError(candidates=kinds)) == kinds
    assert candidates_of(Differentiable(candidates=kinds)) == kinds
    assert candidates_of(Kurtosis(outlying=kinds[0], typical=kinds[1])) == kinds
