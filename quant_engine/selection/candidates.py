"""The candidates of a policy at one site: complete transforms without duplicates, their names and their costs."""

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
        transform: the complete transform.
        inherits: whether it uses the scales that a search or a training found for the site.
    """

    transform: Transform
    inherits: bool


def wanted(candidate: Candidate, own: Transform, found: SitePlan | None) -> Wanted:
    """Complete a candidate of a policy for one site.

    A candidate that is only a kind takes its other fields from ``own``, the policy's transform. Its scales come from
    ``found`` if both the kind and the found plan have scales.
    """
    if isinstance(candidate, Transform):
        return Wanted(transform=candidate, inherits=False)
    transform = own.model_copy(update={"kind": candidate})
    if found is None or found.scales_D is None or not transform.kind.scales_channels:
        return Wanted(transform=transform, inherits=False)
    # The transform has to describe the scales that it uses, so α and the statistic are those of the found plan.
    policy = {"alpha": found.alpha, "statistic": found.statistic}
    policy = {key: value for key, value in policy.items() if value is not None}
    return Wanted(transform=transform.model_copy(update=policy), inherits=True)


def canonical(transform: Transform) -> Transform:
    """Reset the fields that the transform's kind does not read, so that transforms that act alike are equal."""
    kind, unread = transform.kind, []
    if not kind.scales_channels:
        unread += ["statistic"] if kind in CLOSED_FORMS else ["alpha", "statistic"]
    if not kind.rotates:
        unread += ["block_size"]
    if not kind.is_hadamard:
        unread += ["orders", "permutation"]
    if kind not in CLOSED_FORMS:
        unread += ["damping", "massive_cap"]
    return transform.model_copy(update={name: getattr(_DEFAULT, name) for name in unread})


def distinct(candidates: Sequence[Wanted], found: SitePlan | None) -> tuple[tuple[Wanted, ...], tuple[int, ...]]:
    """Return the candidates without duplicates, and for each given candidate its place in that list.

    Found scales make a candidate different only if they are not those that its own scale policy gives.
    """
    # Searched scales follow from their policy. Learned scales do not; they have another label than their statistic.
    learned = found is not None and found.statistic is not None and found.label != found.statistic.kind
    kept: dict[tuple[Transform, bool], Wanted] = {}
    keys = [(canonical(each.transform), each.inherits and learned) for each in candidates]
    for key, each in zip(keys, candidates, strict=True):
        kept.setdefault(key, each)
    places = {key: index for index, key in enumerate(kept)}
    return tuple(kept.values()), tuple(places[key] for key in keys)


def candidate_name(transform: Transform, found: SitePlan | None = None) -> str:
    """The name of a candidate: ``cat``, ``cat(block 128)``, ``smooth_rotation(l2, α 0.5)``.

    With ``found`` scales their label replaces the statistic. The name contains the fields that :func:`canonical` does
    not reset, so that different candidates have different names.
    """
    transform, parts = canonical(transform), []
    if transform.kind.scales_channels:
        label = _statistic_name(transform.statistic) if found is None else found.label
        parts += [label, f"α {transform.alpha:g}"]
    # Closed forms without scales read α as their balance; for all other kinds ``canonical`` has reset it.
    elif transform.alpha != _DEFAULT.alpha:
        parts.append(f"α {transform.alpha:g}")
    if transform.block_size is not None:
        parts.append(f"block {transform.block_size}")
    if transform.orders != _DEFAULT.orders:
        parts.append("powers of two")
    if transform.permutation != _DEFAULT.permutation:
        parts.append(transform.permutation)
    if transform.damping != _DEFAULT.damping:
        parts.append(f"damping {transform.damping:g}")
    if transform.massive_cap is not None:
        parts.append(f"cap {transform.massive_cap:g}")
    return f"{transform.kind.value}({', '.join(parts)})" if parts else transform.kind.value


def relative_cost(plan: SitePlan, linears: Sequence[Tensor]) -> float:
    """Multiply-adds per token of the online part of ``plan``, divided by those of the ``linears`` [O, I] after it.

    The diagonal is fused and costs nothing.
    """
    width = linears[0].shape[-1]
    return online_cost(plan.online, width) / sum(w_OI.numel() for w_OI in linears)


def _statistic_name(statistic: Statistic) -> str:
    parameter = {"quantile": statistic.q, "lp": statistic.p}.get(statistic.kind)
    return statistic.kind if parameter is None else f"{statistic.kind} {parameter:g}"
