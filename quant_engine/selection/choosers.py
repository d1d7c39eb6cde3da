"""Choose one of a site's measured candidates, with one chooser for each kind of selection.

A chooser never returns a candidate whose error on validation tokens is not finite. If no error is finite, it raises
:class:`NumericalInstability`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from quant_engine.policy import AnySelection, Differentiable, Kurtosis, LowestError
from quant_engine.selection.differentiable import Mixture
from quant_engine.selection.lowest_error import lowest, scored


@dataclass(frozen=True, kw_only=True)
class Tails:
    """A site's kurtosis κ, its score z in its role group, and whether the rule classifies it as outlying."""

    kurtosis: float
    z: float
    outlying: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateMeasurements:
    """The input of a chooser.

    Attributes:
        errors: E of every distinct candidate on validation tokens; infinite if it can not be used.
        costs: c of every distinct candidate.
        places: for each candidate of the selection, in its order, the place among the distinct ones.
        mixture: learns the weights of the candidates at the given places.
        tails: only for a selection by kurtosis.
    """

    errors: Sequence[float]
    costs: Sequence[float]
    places: Sequence[int]
    mixture: Callable[[Differentiable, Sequence[int]], Mixture]
    tails: Tails | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The chosen place, the report's columns with a value for every candidate, and the report's facts of the site."""

    index: int
    columns: dict[str, Sequence[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def choose_candidate(selection: AnySelection, choices: CandidateMeasurements) -> Verdict:
    """Choose a candidate with the chooser of the selection's kind.

    Raises:
        NumericalInstability: no candidate's error is finite.
    """
    return _CHOOSERS[type(selection)](selection, choices)


def candidates_of(selection: AnySelection) -> tuple[Any, ...]:
    """The candidates of a selection; for kurtosis, the outlying and the typical one."""
    if isinstance(selection, Kurtosis):
        return (selection.outlying, selection.typical)
    return selection.candidates


def _by_error(selection: LowestError, choices: CandidateMeasurements) -> Verdict:
    scores = scored(choices.errors, choices.costs, selection.online_cost)
    return Verdict(index=lowest(scores), columns={"score": scores})


def _by_kurtosis(_: Kurtosis, choices: CandidateMeasurements) -> Verdict:
    """Choose the candidate that the rule gives, or the other one if it can not be used."""
    if choices.tails is None:
        raise ValueError("a selection by kurtosis needs the kurtosis of every site")
    outlying, typical = choices.places  # the order of ``candidates_of``; both are one place if the two are equal
    index = outlying if choices.tails.outlying else typical
    if not math.isfinite(choices.errors[index]):
        index = lowest(choices.errors)
    tails = choices.tails
    return Verdict(index=index, facts={"kurtosis": tails.kurtosis, "z": tails.z, "outlying": tails.outlying})


def _by_mixture(selection: Differentiable, choices: CandidateMeasurements) -> Verdict:
    """Choose the usable candidate with the largest weight."""
    lowest(choices.errors)  # raises if none can be used
    # Candidates without a finite error are left out of the mixture; their weight in the report is 0.
    usable = [index for index, error in enumerate(choices.errors) if math.isfinite(error)]
    mixture = choices.mixture(selection, usable)
    weights = [0.0] * len(choices.errors)
    for index, weight in zip(usable, mixture.weights, strict=True):
        weights[index] = weight
    return Verdict(index=usable[mixture.index], columns={"weight": weights}, facts={"mixture_loss": mixture.loss})


_CHOOSERS: Final[dict[type, Callable[[Any, CandidateMeasurements], Verdict]]] = {
    LowestError: _by_error,
    Kurtosis: _by_kurtosis,
    Differentiable: _by_mixture,
}
