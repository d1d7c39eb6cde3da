"""The sites that a policy quantizes, as far as settings depend on them, from a model's layout."""

from dataclasses import dataclass

from quant_engine.interface.layout import ModelLayout
from quant_engine.interface.targets import is_targeted
from quant_engine.policy import Policy


@dataclass(frozen=True)
class SiteOutline:
    """A :class:`quant_engine.interface.site_settings.SiteShape`: what settings depend on, and no tensor."""

    name: str
    role: str
    readers: tuple[str, ...]
    features: int


def site_outlines(layout: ModelLayout, policy: Policy) -> list[SiteOutline]:
    """Return the sites with a linear that ``policy`` quantizes, in forward order."""
    outlines = []
    for block in range(layout.layers):
        prefix = layout.architecture.block_prefix(block)
        for template in layout.architecture.sites:
            readers = tuple(prefix + name for name in template.readers if is_targeted(prefix + name, policy))
            if readers:
                _, features = layout.linears[readers[0]]
                name = prefix + template.role
                outlines.append(SiteOutline(name, template.role, readers, features))
    return outlines
