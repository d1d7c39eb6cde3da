"""Choose, for each layer, the candidate with the lowest error on tokens to which no candidate was fitted.

    score = E · (1 + λ c),   c = online multiply-adds per token of the transform / those of the linears after it

E includes all tokens, massive ones too (docs/decisions/0010). This was measured on SmolLM2-135M (blocks 8 and 11, every
linear, seven candidates, 2,560 validation and 3,072 test tokens). The lowest E on validation tokens was the lowest on
test tokens at all eight sites. With a single window of 512 tokens, the choice was at most 1.2 % above it. A mean over
tokens of relative errors chose a full CAT for block 11's down_proj, whose E on test tokens is 3.3 times that of L2
smooth rotation.

Shapes: T tokens, I input channels, O output channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.evaluation.layer_errors import plan_errors
from quant_engine.policy import ActivationQuantization, WeightQuantization
from quant_engine.selection.candidates import relative_cost
from quant_engine.transforms import SitePlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Selected:
    """The best of some plans for a site.

    Attributes:
        plan: the plan with the lowest score; of equals, the earlier.
        index: its place among the candidates.
        errors: E of every candidate, in order; infinite where it is not finite or not a number.
        costs: c of every candidate.
        scores: E · (1 + λ c).
    """

    plan: SitePlan
    index: int
    errors: tuple[float, ...]
    costs: tuple[float, ...]
    scores: tuple[float, ...]


def lowest_error(
    x_val_TI: Tensor,
    linears: Sequence[Tensor],
    plans: Sequence[SitePlan],
    weights: WeightQuantization,
    activations: ActivationQuantization,
    *,
    online_cost: float = 0.0,
) -> Selected:
    """Measure every plan on validation tokens, and return the best one whose error is finite.

    Of two plans with equal scores the first wins, so pass the cheaper plan first.

    Args:
        online_cost: λ ≥ 0.

    Raises:
        ValueError: there is no plan to choose from.
        NumericalInstability: no plan's error is finite.
        UnsupportedPolicy: as :func:`plan_errors`.
    """
    errors = finite_or_infinite(lambda each: plan_errors(x_val_TI, linears, each, weights, activations), plans)
    costs = tuple(relative_cost(plan, linears) for plan in plans)
    scores = scored(errors, costs, online_cost)
    index = lowest(scores)
    return Selected(plan=plans[index], index=index, errors=errors, costs=costs, scores=scores)


def scored(errors: Sequence[float], costs: Sequence[float], online_cost: float) -> tuple[float, ...]:
    """E · (1 + λ c) of every candidate."""
    return tuple(error * (1.0 + online_cost * cost) for error, cost in zip(errors, costs, strict=True))


def lowest(scores: Sequence[float]) -> int:
    """The place of the lowest finite score; of equals, the earlier.

    Raises:
        ValueError: there are no scores.
        NumericalInstability: no score is finite.
    """
    if not scores:
        raise ValueError("there is no plan to choose from")
    finite = [index for index, score in enumerate(scores) if math.isfinite(score)]
    if not finite:
        raise NumericalInstability(
            detail=f"None of {len(scores)} candidate transforms gives a layer a finite error.",
            hint="Check the model's weights for NaN or infinity, or add a candidate that is a rotation.",
        )
    return min(finite, key=scores.__getitem__)


def finite_or_infinite(
    measure: Callable[[Sequence[SitePlan]], Sequence[float]], plans: Sequence[SitePlan]
) -> tuple[float, ...]:
    """Return ``measure(plans)``, with infinity for each plan that can not be measured."""
    try:
        # All plans in one call, because they share the unquantized output Y.
        return tuple(measure(plans))
    except NumericalInstability:
        if len(plans) == 1:
            return (math.inf,)
        # The error does not name the plan that failed, so each is measured by itself.
        return tuple(error for plan in plans for error in finite_or_infinite(measure, [plan]))
