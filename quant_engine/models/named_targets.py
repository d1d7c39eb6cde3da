"""Replace the regular expressions of a foreign ``quantization_config`` by the names that they mean.

compressed-tensors matches them with a backtracking engine, which an expression can keep busy for good. Here RE2 matches
them in linear time, and compressed-tensors gets names. Its order of precedence is kept: a name before an expression, of
two expressions the first one in alphabetical order, and a class last.
"""

from collections.abc import Iterable, Sequence

from compressed_tensors.quantization import QuantizationConfig
from torch import nn

from quant_engine.policy.patterns import EXPRESSION, beginning_test


def with_names(config: QuantizationConfig, model: nn.Module) -> QuantizationConfig:
    """Return ``config`` without regular expressions, with the same meaning for ``model``.

    Raises:
        PatternError: RE2 can not run an expression.
    """
    names = [name for name, _ in model.named_modules() if name]
    taken = {target for group in config.config_groups.values() for target in group.targets}
    found: dict[str, list[str]] = {}
    for pattern in sorted(target for target in taken if target.startswith(EXPRESSION)):
        found[pattern] = [name for name in matching(pattern, names) if name not in taken]
        taken.update(found[pattern])
    groups = {
        name: group.model_copy(update={"targets": [new for old in group.targets for new in found.get(old, [old])]})
        for name, group in config.config_groups.items()
    }
    return config.model_copy(update={"config_groups": groups, "ignore": plain_names(config.ignore or (), names)})


def plain_names(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return ``patterns`` with the names that each expression matches in its place. Raises: PatternError."""
    return [name for pattern in patterns for name in matching(pattern, names)]


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that an expression matches, as narrowly as compressed-tensors; other patterns as they are.

    A module with modules inside is meant only by an expression that matches none of those.
    """
    if not pattern.startswith(EXPRESSION):
        return [pattern]
    begins = beginning_test(pattern.removeprefix(EXPRESSION))
    found = [name for name in names if begins(name)]
    outer = {name.rpartition(".")[0] for name in found}
    return [name for name in found if name not in outer]
