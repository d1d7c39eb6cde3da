"""The policy as it stands for one linear, or for all linears that read one input."""

from dataclasses import dataclass

from quant_engine.policy.formats import ActivationQuantization, WeightQuantization
from quant_engine.policy.resolve import matches
from quant_engine.policy.transform import Transform
from quant_engine.policy.types import Policy


@dataclass(frozen=True, kw_only=True)
class SiteQuantization:
    """How the weights of a site's linears are quantized, and how their input is."""

    weights: WeightQuantization
    activations: ActivationQuantization


@dataclass(frozen=True, kw_only=True)
class SiteSettings(SiteQuantization):
    """Everything that a policy says of one site: its quantization, and the transform in front of it."""

    transform: Transform


def linear_settings(name: str, policy: Policy) -> SiteSettings:
    """The settings of the linear ``name``. Overrides apply in their order, each field by itself."""
    weights, activations, transform = policy.weights, policy.activations, policy.transform
    for override in policy.overrides:
        if matches(override.match, name):
            weights = override.weights or weights
            activations = override.activations or activations
            transform = override.transform or transform
    return SiteSettings(weights=weights, activations=activations, transform=transform)
