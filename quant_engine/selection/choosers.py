"""One chooser for each kind of selection: from a site's candidates, as they were measured, to the one it keeps.

A chooser never names a candidate whose error on validation tokens is not finite; where none is, it raises
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
    """A site's kurtosis κ, its score z among the sites of its role group, and whether the rule calls it outlying."""

    kurtosis: float
    z: float
    outlying: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateMeasurements:
    """What a chooser looks at.

    Attributes:
        errors: E of every distinct candidate on validation tokens; infinite where it can not be used.
        costs: c of every one.
        places: of the selection's candidates, in its order, among the distinct ones.
        mixture: learns the weights of the candidates at the given places.
        tails: with a selection by kurtosis.
    """

    errors: Sequence[float]
    costs: Sequence[float]
    places: Sequence[int]
    mixture: Callable[[Differentiable, Sequence[int]], Mixture]
    tails: Tails | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The chosen place; what a report says of every candidate, by column, and of the site."""

    index: int
    columns: dict[str, Sequence[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def choose_candidate(selection: AnySelection, choices: CandidateMeasurements) -> Verdict:
    """The verdict of the selection's kind.

    Raises:
        NumericalInstability: no candidate's error is finite.
    """
    return _CHOOSERS[type(selection)](selection, choices)


def candidates_of(selection: AnySelection) -> tuple[Any, ...]:
    """The selection's candidates; of a selection by kurtosis, the outlying and the typical one."""
    if isinstance(selection, Kurtosis):
        return (selection.outlying, selection.typical)
    return selection.candidates


def _by_error(selection: LowestError, choices: CandidateMeasurements) -> Verdict:
    scores = scored(choices.errors, choices.costs, selection.online_cost)
    return Verdict(index=lowest(scores), columns={"score": scores})


def _by_kurtosis(_: Kurtosis, choices: CandidateMeasurements) -> Verdict:
    """The one that the rule says, or the other where that one can not be used."""
    if choices.tails is None:
        raise ValueError("a selection by kurtosis needs the kurtosis of every site")
    outlying, typical = choices.places
    index = outlying if choices.tails.outlying else typical
    if not math.isfinite(choices.errors[index]):
        index = lowest(choices.errors)
    tails = choices.tails
    return Verdict(index=index, facts={"kurtosis": tails.kurtosis, "z": tails.z, "outlying": tails.outlying})


def _by_mixture(selection: Differentiable, choices: CandidateMeasurements) -> Verdict:
    """The heaviest of those that can be used."""
    lowest(choices.errors)  # raises where none can
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
