"""The part of a policy that applies to one linear, or to all linears that read one input."""

from dataclasses import dataclass

from quant_engine.policy.formats import ActivationQuantization, WeightQuantization
from quant_engine.policy.resolve import matches
from quant_engine.policy.transform import Transform
from quant_engine.policy.types import Policy


@dataclass(frozen=True, kw_only=True)
class SiteQuantization:
    """How the weights of a site's linears and their input are quantized."""

    weights: WeightQuantization
    activations: ActivationQuantization


@dataclass(frozen=True, kw_only=True)
class SiteSettings(SiteQuantization):
    """The settings of one site: its quantization, and the transform in front of it."""

    transform: Transform


def linear_settings(name: str, policy: Policy) -> SiteSettings:
    """Return the settings of the linear ``name``. Overrides apply in their order, each field separately."""
    weights, activations, transform = policy.weights, policy.activations, policy.transform
    for override in policy.overrides:
        if matches(override.match, name):
            weights = override.weights or weights
            activations = override.activations or activations
            transform = override.transform or transform
    return SiteSettings(weights=weights, activations=activations, transform=transform)
