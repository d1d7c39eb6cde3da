"""What a layer chooses among: candidates of a policy as whole transforms, told apart, named, and with their cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quant_engine.policy import Candidate, Statistic, Transform
from quant_engine.transforms import SitePlan
from quant_engine.transforms.composition import online_cost
from quant_engine.transforms.plan_builders import CLOSED_FORMS

_DEFAULT = Transform()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A candidate at one site.

    Attributes:
        transform: as a whole.
        inherits: whether it takes the scales that a search or a training found for the site.
    """

    transform: Transform
    inherits: bool


def wanted(candidate: Candidate, own: Transform, found: SitePlan | None) -> Wanted:
    """A kind takes the rest from ``own``, the policy's transform, and its scales from ``found`` where both have any."""
    if isinstance(candidate, Transform):
        return Wanted(transform=candidate, inherits=False)
    transform = own.model_copy(update={"kind": candidate})
    if found is None or found.scales_D is None or not transform.kind.scales_channels:
        return Wanted(transform=transform, inherits=False)
    policy = {"alpha": found.alpha, "statistic": found.statistic}
    policy = {key: value for key, value in policy.items() if value is not None}
    return Wanted(transform=transform.model_copy(update=policy), inherits=True)


def canonical(transform: Transform) -> Transform:
    """The transform with the fields that its kind does not read at their defaults: equal ones do the same."""
    kind, unread = transform.kind, []
    if not kind.scales_channels:
        unread += ["statistic"] if kind in CLOSED_FORMS else ["alpha", "statistic"]
    if not kind.rotates:
        unread += ["block_size"]
    if kind not in CLOSED_FORMS:
        unread += ["damping", "massive_cap"]
    return transform.model_copy(update={name: getattr(_DEFAULT, name) for name in unread})


def distinct(candidates: Sequence[Wanted], found: SitePlan | None) -> tuple[tuple[Wanted, ...], tuple[int, ...]]:
    """The candidates without those that an earlier one equals, and each given one's place among the rest.

    Found scales make a difference only where they are not those of their own policy.
    """
    learned = found is not None and found.statistic is not None and found.label != found.statistic.kind
    kept: dict[tuple[Transform, bool], Wanted] = {}
    keys = [(canonical(each.transform), each.inherits and learned) for each in candidates]
    for key, each in zip(keys, candidates, strict=True):
        kept.setdefault(key, each)
    places = {key: index for index, key in enumerate(kept)}
    return tuple(kept.values()), tuple(places[key] for key in keys)


def candidate_name(transform: Transform, found: SitePlan | None = None) -> str:
    """``cat``, ``cat(block 128)``, ``smooth_rotation(l2, α 0.5)``; with ``found`` scales, their label.

    Names the fields that :func:`canonical` keeps, so that different candidates have different names.
    """
    transform, parts = canonical(transform), []
    if transform.kind.scales_channels:
        label = _statistic_name(transform.statistic) if found is None else found.label
        parts += [label, f"α {transform.alpha:g}"]
    elif transform.alpha != _DEFAULT.alpha:
        parts.append(f"α {transform.alpha:g}")
    if transform.block_size is not None:
        parts.append(f"block {transform.block_size}")
    if transform.damping != _DEFAULT.damping:
        parts.append(f"damping {transform.damping:g}")
    if transform.massive_cap is not None:
        parts.append(f"cap {transform.massive_cap:g}")
    return f"{transform.kind.value}({', '.join(parts)})" if parts else transform.kind.value


def relative_cost(plan: SitePlan, linears: Sequence[Tensor]) -> float:
    """Multiply-adds per token of what ``plan`` computes online, over those of the ``linears`` [O, I] behind it.

    The diagonal is fused and costs nothing.
    """
    width = linears[0].shape[-1]
    return online_cost(plan.online, width) / sum(w_OI.numel() for w_OI in linears)


def _statistic_name(statistic: Statistic) -> str:
    parameter = {"quantile": statistic.q, "lp": statistic.p}.get(statistic.kind)
    return statistic.kind if parameter is None else f"{statistic.kind} {parameter:g}"
