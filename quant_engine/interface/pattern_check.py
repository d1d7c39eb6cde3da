"""What is wrong with the patterns of a policy for one model: each entry has to match what it is for.

It loads no torch, so the API can ask it with the names that a ``config.json`` implies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Final

from quant_engine.interface.architectures import Architecture
from quant_engine.interface.targets import is_covered, is_named, is_targeted
from quant_engine.policy import PRESETS, Override, Policy, PolicyError, linear_settings, matches
from quant_engine.policy.known_names import (
    ELSEWHERE,
    check_name,
    never_quantized,
    no_match,
    not_a_linear,
    parts_of,
)
from quant_engine.policy.patterns import Names, PatternError, check_pattern

_DEFAULT_TARGETS: Final = frozenset(frozenset(preset.policy.targets) for preset in PRESETS.values())
_IN_BLOCK: Final = ("self_attn.q_norm", "self_attn.k_norm", "self_attn.rotary_emb", "mlp.act_fn")


@dataclass(frozen=True)
class PatternFinding:
    """One entry of a policy that can not mean what was asked: ``pointer`` is a JSON pointer into the job's request."""

    pointer: str
    code: str
    detail: str


def check_patterns(policy: Policy, linears: Sequence[str], architecture: Architecture) -> list[PatternFinding]:
    """Return everything that is wrong with the patterns of ``policy`` for one model; an empty list for nothing.

    Each entry of ``targets`` and ``overrides`` has to match a linear that can be quantized, and each override one that
    is quantized. An entry of ``ignore`` may also match what is never quantized (the head, the embedding, norms), and
    modules of other classes of models that recipes of llm-compressor list (``re:vision_tower.*``).

    Args:
        policy: resolved (:func:`quant_engine.policy.resolve_policy`).
        linears: the model's linears, as :func:`quant_engine.interface.targets.linear_names` gives them.
    """
    # An evaluation quantizes nothing, so its patterns mean nothing.
    if policy.task == "evaluate":
        return []
    model = _Model(tuple(linears), architecture, policy)
    findings = [*_targets(policy, model), *_ignored(policy, model), *_overrides(policy, model)]
    if not findings and not any(model.is_targeted_or_unclear(name) for name in linears):
        findings.append(
            PatternFinding(
                "/policy/targets",
                "nothing_left",
                "ignore and overrides exclude every linear that targets name, so there is nothing to quantize. "
                "Remove an entry of ignore, or add to targets.",
            )
        )
    return findings


@dataclass(frozen=True)
class _Model:
    """The names of one model's modules, by what a pattern may do with them, and which of them a policy quantizes."""

    linears: tuple[str, ...]
    architecture: Architecture
    policy: Policy
    _targeted: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def whole(self) -> Names:
        return Names(self.linears)

    @cached_property
    def fused(self) -> dict[str, tuple[str, ...]]:
        return {name: parts_of(name) for name in self.linears if parts_of(name)}

    @cached_property
    def parts(self) -> Names:
        return Names(part for parts in self.fused.values() for part in parts)

    @cached_property
    def never(self) -> Names:
        norms = [site.producer for site in self.architecture.sites if site.producer.endswith("norm")]
        inside = (*norms, *self.architecture.post_norms, *_IN_BLOCK)
        whole = (self.architecture.head, self.architecture.embedding, self.architecture.final_norm, "model.rotary_emb")
        return Names((*whole, *(f"{block}.{name}" for block in self._blocks for name in inside)))

    @cached_property
    def holders(self) -> Names:
        inside = [f"{block}{name}" for block in self._blocks for name in ("", ".self_attn", ".mlp")]
        return Names(("model", self.architecture.blocks, *inside))

    @cached_property
    def elsewhere(self) -> Names:
        shapes = ("{}", "model.{}", "model.layers.0.{}", "{}.blocks.0.mlp.fc1", "model.{}.blocks.0.mlp.fc1")
        return Names(shape.format(name) for name in ELSEWHERE for shape in shapes)

    def is_targeted_or_unclear(self, name: str) -> bool:
        """Return whether the policy quantizes a linear, or its overrides contradict one another there."""
        # Every override asks about the same linears.
        if name not in self._targeted:
            self._targeted[name] = _targeted_or_unclear(name, self.policy)
        return self._targeted[name]

    @property
    def _blocks(self) -> list[str]:
        depth = self.architecture.blocks.count(".") + 2
        return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in self.linears))


def _targets(policy: Policy, model: _Model) -> Iterator[PatternFinding]:
    # The targets of a preset list the linears of all architectures.
    if frozenset(policy.targets) in _DEFAULT_TARGETS:
        return
    for index, pattern in enumerate(policy.targets):
        yield from _finding(f"/policy/targets/{index}", partial(_check_target, pattern, policy, model))


def _ignored(policy: Policy, model: _Model) -> Iterator[PatternFinding]:
    for index, pattern in enumerate(policy.ignore):
        yield from _finding(f"/policy/ignore/{index}", partial(_check_ignored, pattern, model))


def _overrides(policy: Policy, model: _Model) -> Iterator[PatternFinding]:
    for index, override in enumerate(policy.overrides):
        yield from _finding(f"/policy/overrides/{index}/match", partial(_check_override, override, policy, model))


def _finding(pointer: str, check: Callable[[], None]) -> Iterator[PatternFinding]:
    try:
        check()
    except PatternError as error:
        yield PatternFinding(pointer, error.code, error.detail)


def _check_target(pattern: str, policy: Policy, model: _Model) -> None:
    _require_linear(pattern, model)
    if model.whole.any_match(pattern):
        return
    # The entry names parts of a fused linear, so the other entries have to name its other parts.
    mine = [fused for fused, parts in model.fused.items() if any(matches(pattern, part) for part in parts)]
    if not any(is_covered(fused, policy.targets) for fused in mine):
        raise PatternError(
            "partly_fused", f"{_held(mine[0])}, which is quantized as a whole. Name it, or all of its parts."
        )


def _check_ignored(pattern: str, model: _Model) -> None:
    check_pattern(pattern)
    check_name(pattern, ignored=True)
    if any(names.any_match(pattern) for names in (model.whole, model.parts, model.never, model.elsewhere)):
        return
    if model.holders.any_match(pattern):
        raise not_a_linear()
    raise no_match(pattern, model.whole.leaves, model.linears, ignored=True)


def _check_override(override: Override, policy: Policy, model: _Model) -> None:
    _require_linear(override.match, model)
    is_used = override.weights is not None and not override.weights.format.quantizes
    for name in model.linears:
        parts = parts_of(name)
        if not any(matches(override.match, each) for each in (name, *parts)):
            continue
        if _is_partly_overridden(name, override, policy):
            raise PatternError(
                "partly_fused",
                f"{_held(name)}, which has one set of settings, but overrides give its parts different ones. Match it, "
                "or all of its parts with the same settings.",
            )
        is_used = is_used or model.is_targeted_or_unclear(name)
        # Only overrides of parts can contradict each other, so of other linears the first that is used decides.
        if is_used and not parts:
            return
    if not is_used:
        raise PatternError(
            "not_targeted",
            "This override matches only linears that are not quantized, so it would change nothing. Add them to "
            "targets, or remove the override.",
        )


def _require_linear(pattern: str, model: _Model) -> None:
    check_pattern(pattern)
    check_name(pattern, ignored=False)
    if model.whole.any_match(pattern) or model.parts.any_match(pattern):
        return
    if model.never.any_match(pattern):
        raise never_quantized()
    if model.holders.any_match(pattern):
        raise not_a_linear()
    separate = [part.rpartition(".")[2] for part in parts_of(pattern)]
    if separate and set(separate) <= set(model.whole.leaves):
        raise PatternError(
            "no_match", f"This model has no fused linear of this name. Name its parts instead: {', '.join(separate)}."
        )
    raise no_match(pattern, model.whole.leaves, model.linears)


def _targeted_or_unclear(name: str, policy: Policy) -> bool:
    try:
        return is_targeted(name, policy)
    except PolicyError:
        return True


def _is_partly_overridden(name: str, override: Override, policy: Policy) -> bool:
    """Whether the override gives some parts of a fused linear that is quantized settings of their own."""
    parts = parts_of(name)
    if not parts or matches(override.match, name) or all(matches(override.match, part) for part in parts):
        return False
    try:
        linear_settings(name, policy)
    except PolicyError:
        return is_named(name, policy)
    return False


def _held(fused: str) -> str:
    leaf, parts = fused.rpartition(".")[2], ", ".join(part.rpartition(".")[2] for part in parts_of(fused))
    return f"This model holds {parts} in one linear, {leaf}"
