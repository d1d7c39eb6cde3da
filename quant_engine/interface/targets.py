"""Which linears of a model a policy quantizes. It loads no torch.

Names are those of the model's modules, such as ``model.layers.0.mlp.down_proj``. A fused linear (``qkv_proj``) answers
to its own name and to the names of its parts (``q_proj``, ``k_proj``, ``v_proj``), as long as they agree.
"""

from collections.abc import Sequence

from quant_engine.interface.architectures import Architecture
from quant_engine.policy import Policy, linear_settings, matches
from quant_engine.policy.known_names import parts_of


def linear_names(architecture: Architecture, blocks: int) -> tuple[str, ...]:
    """Return the names of all linears that can be quantized, in forward order."""
    return tuple(
        architecture.block_prefix(block) + reader
        for block in range(blocks)
        for site in architecture.sites
        for reader in site.readers
    )


def is_targeted(name: str, policy: Policy) -> bool:
    """Return whether ``policy`` quantizes the linear ``name``.

    An override of its weights to ``none`` excludes a linear. A fused linear is also targeted where ``targets`` name all
    of its parts, and ignored where ``ignore`` names one of them.

    Raises:
        PolicyError: overrides give the parts of a fused linear different settings.
    """
    return is_named(name, policy) and linear_settings(name, policy).weights.format.quantizes


def is_named(name: str, policy: Policy) -> bool:
    """Return whether ``targets`` name the linear and ``ignore`` does not, whatever overrides say."""
    named = _matches_any(policy.targets, name) or is_covered(name, policy.targets)
    return named and not any(_matches_any(policy.ignore, each) for each in (name, *parts_of(name)))


def is_covered(fused: str, patterns: Sequence[str]) -> bool:
    """Return whether the patterns together match all parts of a fused linear."""
    parts = parts_of(fused)
    return bool(parts) and all(_matches_any(patterns, part) for part in parts)


def _matches_any(patterns: Sequence[str], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)
