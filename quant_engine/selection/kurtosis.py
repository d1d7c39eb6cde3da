"""Choose between two transforms by the kurtosis of a layer's weights (arXiv 2511.17809, adaptive transformations).

    κ = E[(w − μ)⁴] / σ⁴      z = 0.6745 (κ − median) / (MAD + ε)      outlying where sign · z > β

over the layers of one role group. 0.6745 makes z a standard score if κ is normally distributed. We do not know the
paper's β, nor which tail takes which transform. :func:`fit_kurtosis` finds both from layers whose better transform is
known. Shapes: O outputs, I inputs.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability

EPSILON: Final = 1e-12
"""ε of z, which avoids a division by zero where MAD is 0."""
ROLE_GROUPS: Final[Mapping[str, str]] = {
    "attention_input": "attention",
    "attention_output": "attention",
    "feed_forward_input": "feed_forward",
    "feed_forward_inner": "feed_forward",
}
"""The group of sites with which a site of each role is compared."""

_NORMAL_QUARTILE: Final = 0.6745
_LEAST: Final = 1.0
"""The smallest possible kurtosis. Weights that are all equal get it, because theirs would be 0 / 0."""
_CHUNK_ROWS: Final = 1024


@dataclass(frozen=True, kw_only=True)
class KurtosisFit:
    """The rule that agrees best with known labels.

    Attributes:
        sign, beta: a site is outlying where sign · z > beta.
        agreement: the share of the layers that the rule labels correctly, in [0, 1].
    """

    sign: Literal[-1, 1]
    beta: float
    agreement: float


def weight_kurtosis(linears: Sequence[Tensor]) -> float:
    """κ of all weights of ``linears`` [O, I] as one population, with moments in fp64; 3 for a normal distribution.

    Raises:
        ValueError: there are no weights.
        NumericalInstability: a weight is not finite.
    """
    count = sum(w_OI.numel() for w_OI in linears)
    if not count:
        raise ValueError("a kurtosis needs at least one weight")
    mean = sum(float(w_OI.sum(dtype=torch.float64)) for w_OI in linears) / count
    second = fourth = 0.0
    # A second pass around the known mean, because moments around 0 would cancel.
    for w_OI in linears:
        for rows_OI in torch.split(w_OI, _CHUNK_ROWS):  # fp64 of one chunk at a time
            square_OI = (rows_OI.double() - mean).square_()
            second += float(square_OI.sum())
            fourth += float(square_OI.square_().sum())
    if not math.isfinite(second):
        raise NumericalInstability(
            detail="The kurtosis of a layer's weights is not finite.",
            hint="Check the model's weights for NaN or infinity.",
        )
    variance = second / count
    # A variance below this is only the rounding error of fp64: the weights are equal.
    if variance <= (torch.finfo(torch.float64).eps * abs(mean)) ** 2:
        return _LEAST
    return fourth / count / variance**2


def robust_z(values: Sequence[float]) -> tuple[float, ...]:
    """z of each value among all values. MAD is the median of abs(κ − median), without a factor.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a z-score needs at least one value")
    median = statistics.median(values)
    spread = statistics.median(abs(value - median) for value in values)
    return tuple(_NORMAL_QUARTILE * (value - median) / (spread + EPSILON) for value in values)


def grouped_z(kappas: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """z of every site among the sites of its group, in the order of ``kappas``; ``groups`` is by site name."""
    members: dict[str, list[str]] = {}
    for site in kappas:
        members.setdefault(groups[site], []).append(site)
    scores: dict[str, float] = {}
    for sites in members.values():
        scores |= dict(zip(sites, robust_z([kappas[site] for site in sites]), strict=True))
    return {site: scores[site] for site in kappas}


def by_kurtosis(
    kappas: Mapping[str, float], groups: Mapping[str, str], *, sign: Literal[-1, 1], beta: float
) -> dict[str, bool]:
    """Whether each site is outlying: sign · z > beta."""
    return {site: sign * z > beta for site, z in grouped_z(kappas, groups).items()}


def fit_kurtosis(kappas: Mapping[str, float], groups: Mapping[str, str], labels: Mapping[str, bool]) -> KurtosisFit:
    """Find the sign and β that label the most sites as ``labels`` does, over every threshold that separates two sites.

    Thresholds lie halfway between neighboring scores, and one lies beyond each end. Of equal rules, the β nearest to
    zero is taken, then sign 1.

    Raises:
        ValueError: there are no sites.
    """
    scores = grouped_z(kappas, groups)
    fits = [
        KurtosisFit(sign=sign, beta=beta, agreement=_agreement(scores, labels, sign, beta))
        for sign in _SIGNS
        for beta in _thresholds(sorted({sign * z for z in scores.values()}))
    ]
    return min(fits, key=lambda fit: (-fit.agreement, abs(fit.beta), -fit.sign))


_SIGNS: Final[tuple[Literal[-1, 1], ...]] = (1, -1)


def _thresholds(ascending: Sequence[float]) -> list[float]:
    if not ascending:
        raise ValueError("a rule is fitted to at least one site")
    between = [(low + high) / 2 for low, high in pairwise(ascending)]
    return [ascending[0] - 1.0, *between, ascending[-1] + 1.0]


def _agreement(scores: Mapping[str, float], labels: Mapping[str, bool], sign: int, beta: float) -> float:
    return sum((sign * z > beta) == labels[site] for site, z in scores.items()) / len(scores)
