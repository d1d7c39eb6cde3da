"""The settings of every site to quantize: apply the policy's overrides, and check them against the site's width."""

from dataclasses import replace
from typing import Final

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids import misfitting_groups, nearest_divisors
from quant_engine.hadamard import hadamard_order
from quant_engine.models import Site
from quant_engine.policy import Policy, SiteSettings, Transform, TransformKind, linear_settings

_INNER_ROLES: Final = ("attention_output", "feed_forward_inner")


def site_settings(site: Site, policy: Policy) -> SiteSettings:
    """The settings that all of a site's linears share.

    Raises:
        UnsupportedPolicy: the linears are given different settings, or a size does not divide the site's width.
    """
    each = [linear_settings(reader, policy) for reader in site.readers]
    # The linears of a site share one transform and one rounded input, so their settings can not differ.
    if any(other != each[0] for other in each):
        raise UnsupportedPolicy(
            detail=f"{', '.join(site.readers)} read the same input but are given different settings.",
            hint="Write overrides so that they match all of these linears, or none.",
        )
    _check_own_groups(site, each[0])
    size = each[0].weights.group_size
    if size is not None and site.features % size:
        raise UnsupportedPolicy(
            detail=f"weights.group_size {size} does not divide the {site.features} inputs of {site.name}.",
            hint=f"Use {nearest_divisors(site.features, size)}, the nearest divisors of {site.features}, or "
            "granularity 'channel'.",
        )
    transform = allowed_transform(each[0].transform, site.role, policy.online)
    if transform.kind.rotates:
        # Called for its check only: a block size that does not fit is refused before anything is computed.
        hadamard_order(site.features, transform.block_size)
    return replace(each[0], transform=transform)


def allowed_transform(transform: Transform, role: str, online: str) -> Transform:
    """``transform`` as a site of ``role`` may use it, where ``online`` names the sites that may rotate their input."""
    # A transform without a rotation is only a diagonal, which is fused and allowed everywhere.
    if online == "all" or (online == "inner" and role in _INNER_ROLES) or not transform.kind.rotates:
        return transform
    kind = TransformKind.SMOOTH if transform.kind.scales_channels else TransformKind.NONE
    return transform.model_copy(update={"kind": kind})


def _check_own_groups(site: Site, settings: SiteSettings) -> None:
    for field, number_format in (("weights", settings.weights.format), ("activations", settings.activations.format)):
        size = number_format.group_size
        if size is not None and site.features % size:
            raise misfitting_groups(number_format, site.features, field)
