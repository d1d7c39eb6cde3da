"""Per layer, the candidate transform with the lowest error on tokens that none of them was fitted to.

Shapes: T tokens, I input channels, O output channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quant_engine.evaluation.layer_errors import plan_errors
from quant_engine.policy import ActivationQuantization, WeightQuantization
from quant_engine.transforms import SitePlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Selected:
    """The best of some plans for a site.

    Attributes:
        plan: the one with the lowest E; the earlier of equals.
        index: its place among the candidates.
        errors: E of every candidate, in order.
    """

    plan: SitePlan
    index: int
    errors: tuple[float, ...]


def lowest_error(
    x_val_TI: Tensor,
    linears: Sequence[Tensor],
    plans: Sequence[SitePlan],
    weights: WeightQuantization,
    activations: ActivationQuantization,
) -> Selected:
    """Measure every plan on validation tokens and keep the best.

    Put the cheaper plan first: it wins a tie.

    Raises:
        ValueError: there is no plan to choose from.
        UnsupportedPolicy, NumericalInstability: as :func:`plan_errors`.
    """
    if not plans:
        raise ValueError("there is no plan to choose from")
    errors = plan_errors(x_val_TI, linears, plans, weights, activations)
    index = min(range(len(errors)), key=errors.__getitem__)
    return Selected(plan=plans[index], index=index, errors=errors)
