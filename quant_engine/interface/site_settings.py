"""The settings of every site to quantize: apply the policy's overrides, and check them against the sites' widths.

It imports no torch, so that a job is refused at submit for the same reasons as in the engine.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

from quant_engine.errors import UnsupportedPolicy
from quant_engine.interface.hadamard_orders import hadamard_order
from quant_engine.interface.problems import Problem
from quant_engine.online.hadamard_cores import hadamard_cores
from quant_engine.policy import (
    NumberFormat,
    Policy,
    SiteSettings,
    Transform,
    TransformKind,
    in_words,
    linear_settings,
    matches,
)
from quant_engine.policy.known_names import parts_of

_INNER_ROLES: Final = ("attention_output", "feed_forward_inner")
_SMALLEST_GROUP: Final = 8
_NAMED: Final = 6
"""How many sites, or sizes, a message lists at most."""


class SiteShape(Protocol):
    """The part of a site that settings depend on: the linears that read one tensor of ``features`` channels."""

    @property
    def name(self) -> str:
        """The linears' names in short."""

    @property
    def role(self) -> str:
        """Where in the block it is (:mod:`quant_engine.interface.architectures`)."""

    @property
    def readers(self) -> tuple[str, ...]:
        """The linears to quantize."""

    @property
    def features(self) -> int:
        """The channels of the tensor that they read."""


def site_settings(site: SiteShape, policy: Policy) -> SiteSettings:
    """Return the settings that all of a site's linears share; :func:`site_problems` has checked them."""
    settings = linear_settings(site.readers[0], policy)
    return replace(settings, transform=allowed_transform(settings.transform, site.role, policy.online))


def allowed_transform(transform: Transform, role: str, online: str) -> Transform:
    """``transform`` as a site of ``role`` may use it, where ``online`` names the sites that may rotate their input."""
    # Only between the linears of a feed-forward can a permutation be fused.
    if role != "feed_forward_inner" and transform.permutation != "none":
        transform = transform.model_copy(update={"permutation": "none"})
    # A transform without a rotation is only a diagonal, which is fused and allowed everywhere.
    if online == "all" or (online == "inner" and role in _INNER_ROLES) or not transform.kind.rotates:
        return transform
    kind = TransformKind.SMOOTH if transform.kind.scales_channels else TransformKind.NONE
    return transform.model_copy(update={"kind": kind, "permutation": "none"})


def site_problems(sites: Sequence[SiteShape], policy: Policy) -> list[Problem]:
    """Return what does not fit: linears of one site with different settings, and sizes that do not divide widths.

    Each problem names all sites that have it, and a remedy that fits all sites.
    """
    settings = {site.name: site_settings(site, policy) for site in sites}
    return [
        *_unequal(sites, policy),
        *_group_problems(sites, settings, policy),
        *_own_group_problems(sites, settings, policy),
        *_rotation_problems(sites, settings, policy),
    ]


def _unequal(sites: Sequence[SiteShape], policy: Policy) -> Iterator[Problem]:
    # The linears of a site share one transform and one rounded input, so their settings can not differ.
    differing = [
        site
        for site in sites
        if any(linear_settings(reader, policy) != linear_settings(site.readers[0], policy) for reader in site.readers)
    ]
    if differing:
        first = differing[0]
        more = "" if len(differing) == 1 else f" (and the same in {len(differing) - 1} other places)"
        yield Problem(
            pointer="/policy/overrides",
            code=UnsupportedPolicy.code,
            detail=f"{', '.join(first.readers)} read the same input but are given different settings{more}.",
            hint="Write overrides so that they match all of these linears, or none.",
        )


def _group_problems(sites: Sequence[SiteShape], settings: dict[str, SiteSettings], policy: Policy) -> Iterator[Problem]:
    grouped = {site.name: size for site in sites if (size := settings[site.name].weights.group_size) is not None}
    # A format with groups of its own has another remedy.
    grouped = {name: size for name, size in grouped.items() if settings[name].weights.format.group_size is None}
    misfits = [site for site in sites if site.name in grouped and site.features % grouped[site.name]]
    if not misfits:
        return
    sizes = sorted({grouped[site.name] for site in misfits})
    common = _common_sizes(site.features for site in sites if site.name in grouped)
    remedy = (
        f"Use {_listed(common)}, which fit{'s' if len(common) == 1 else ''} every site, or granularity 'channel'"
        if common
        else f"No size from {_SMALLEST_GROUP} on fits every site: use granularity 'channel'"
    )
    yield Problem(
        pointer=_pointer(misfits, policy, "weights", "group_size"),
        code=UnsupportedPolicy.code,
        detail=f"weights.group_size {_listed(sizes)} does not divide the inputs of {_with_widths(misfits)}.",
        hint=f"{remedy}, or give the named sites an override.",
    )


def _own_group_problems(
    sites: Sequence[SiteShape], settings: dict[str, SiteSettings], policy: Policy
) -> Iterator[Problem]:
    formats: dict[str, Callable[[SiteSettings], NumberFormat]] = {
        "weights": lambda each: each.weights.format,
        "activations": lambda each: each.activations.format,
    }
    others = in_words(each for each in NumberFormat if each.quantizes and each.group_size is None)
    for field, format_of in formats.items():
        misfits = [
            site
            for site in sites
            if (size := format_of(settings[site.name]).group_size) is not None and site.features % size
        ]
        for number_format in dict.fromkeys(format_of(settings[site.name]) for site in misfits):
            affected = [site for site in misfits if format_of(settings[site.name]) is number_format]
            yield Problem(
                pointer=_pointer(affected, policy, field, "format"),
                code=UnsupportedPolicy.code,
                detail=f"{field}.format is {number_format.value}, whose groups of {number_format.group_size} do not "
                f"divide the inputs of {_with_widths(affected)}.",
                hint=f"Add these layers to ignore, or give them an override with {others} for weights and activations.",
            )


def _rotation_problems(
    sites: Sequence[SiteShape], settings: dict[str, SiteSettings], policy: Policy
) -> Iterator[Problem]:
    sized = {
        site.name: size
        for site in sites
        if (transform := settings[site.name].transform).kind.rotates and (size := transform.block_size) is not None
    }
    misfits = [site for site in sites if site.name in sized and not _fits(site.features, sized[site.name])]
    if not misfits:
        return
    common = [
        size
        for size in _common_sizes((site.features for site in sites if site.name in sized), smallest=2)
        if hadamard_cores(size) is not None
    ]
    orders = ", ".join(f"{hadamard_order(width)} for {width}" for width in sorted({site.features for site in misfits}))
    yield Problem(
        pointer=_pointer(misfits, policy, "transform", "block_size"),
        code=UnsupportedPolicy.code,
        detail=f"transform.block_size {_listed(sorted({sized[site.name] for site in misfits}))} does not divide the "
        f"inputs of {_with_widths(misfits)}, or there is no Hadamard matrix of that order.",
        hint=f"Use {_listed(common)}, or null for the largest order of each width ({orders}).",
    )


def _pointer(misfits: Sequence[SiteShape], policy: Policy, field: str, member: str) -> str:
    """Return where the policy gives the sites this setting: one override, or the policy itself."""
    givers = {_giver(site.readers[0], policy, field) for site in misfits}
    place = givers.pop() if len(givers) == 1 else ""
    return f"/policy{place}/{field}/{member}"


def _giver(linear: str, policy: Policy, field: str) -> str:
    names = (linear, *parts_of(linear))
    indices = [
        index
        for index, override in enumerate(policy.overrides)
        if getattr(override, field) is not None and any(matches(override.match, name) for name in names)
    ]
    return f"/overrides/{indices[-1]}" if indices else ""


def _fits(width: int, size: int) -> bool:
    return width % size == 0 and hadamard_cores(size) is not None


def _common_sizes(widths: Iterable[int], smallest: int = _SMALLEST_GROUP) -> list[int]:
    """Return the sizes that divide every width: powers of two first, which kernels want, then the largest others."""
    divisor = math.gcd(*widths)
    sizes = [size for size in range(smallest, divisor + 1) if divisor % size == 0]
    return sorted(sizes, key=lambda size: (size & (size - 1) != 0, -size))


def _with_widths(sites: Sequence[SiteShape]) -> str:
    """Name the sites by their linears and widths, each kind once: blocks differ in their number only."""
    kinds: dict[tuple[str, int], int] = {}
    for site in sites:
        leaf = "+".join(reader.rpartition(".")[2] for reader in site.readers)
        kinds[(leaf, site.features)] = kinds.get((leaf, site.features), 0) + 1
    named = [f"{leaf} ({width}{f', {count} layers' if count > 1 else ''})" for (leaf, width), count in kinds.items()]
    return _listed(named, joined="and")


def _listed(items: Sequence[object], joined: str = "or") -> str:
    shown = [str(each) for each in items[:_NAMED]]
    if len(items) > _NAMED:
        return ", ".join(shown) + ", …"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {joined} {shown[-1]}"
