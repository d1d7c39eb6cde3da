"""The part of a policy that applies to one linear, or to all linears that read one input."""

from dataclasses import dataclass

from quant_engine.policy.formats import ActivationQuantization, WeightQuantization
from quant_engine.policy.known_names import parts_of
from quant_engine.policy.patterns import matches
from quant_engine.policy.policy_error import PolicyError
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
    """Return the settings of the linear ``name``. Overrides apply in their order, each field separately.

    A fused linear takes the overrides of its own name and those of its parts, as long as all parts get the same.

    Raises:
        PolicyError: ``partly_fused``: the parts of a fused linear are given different settings.
    """
    first, *others = (_settings((name, part), policy) for part in parts_of(name) or (name,))
    if any(other != first for other in others):
        raise PolicyError(
            "/overrides",
            "partly_fused",
            f"{name} is one linear, but overrides give its parts different settings. Match it, or all of its parts.",
        )
    return first


def _settings(names: tuple[str, ...], policy: Policy) -> SiteSettings:
    weights, activations, transform = policy.weights, policy.activations, policy.transform
    for override in policy.overrides:
        if any(matches(override.match, name) for name in names):
            weights = override.weights or weights
            activations = override.activations or activations
            transform = override.transform or transform
    return SiteSettings(weights=weights, activations=activations, transform=transform)
