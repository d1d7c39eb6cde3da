"""Complete a partial policy from its preset, check it, and hash it.

``PolicyError`` has a JSON pointer into the policy, a machine-readable code and a remedy.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from quant_engine.policy.activation_checks import check_activations
from quant_engine.policy.fields import Frozen
from quant_engine.policy.formats import NumberFormat, WeightQuantization, in_words
from quant_engine.policy.known_names import check_name
from quant_engine.policy.nearest import did_you_mean
from quant_engine.policy.patterns import PatternError, check_pattern
from quant_engine.policy.policy_error import PolicyError, given
from quant_engine.policy.presets import EVALUATE, PRESETS
from quant_engine.policy.transform import Transform
from quant_engine.policy.types import Policy


def resolve_policy(requested: Policy) -> Policy:
    """Return the preset with the request's explicit fields in place of its own, checked as a whole.

    Raises:
        PolicyError: the preset is unknown, or the fields contradict each other.
    """
    # A default must not override a preset, so only the fields of the request itself count.
    explicit = requested.model_dump(mode="json", exclude_unset=True)
    if requested.preset is None:
        # The defaults quantize, which an evaluation refuses, so an evaluation starts from its preset.
        base = EVALUATE.policy.model_dump(mode="json", exclude={"preset"}) if requested.task == "evaluate" else {}
        merged = _overlay(base, explicit)
    elif requested.preset in PRESETS:
        merged = _overlay(PRESETS[requested.preset].policy.model_dump(mode="json"), explicit)
    else:
        did_you = did_you_mean(requested.preset, PRESETS)
        known = ", ".join(PRESETS)
        raise PolicyError(
            "/preset", "unknown_preset", f"There is no preset of this name.{did_you} Choose one of: {known}."
        )
    policy = Policy.model_validate(merged)
    _check(policy)
    return policy


def policy_hash(policy: Policy) -> str:
    """Return ``sha256:`` and the digest of the canonical JSON of everything but the preset's name."""
    # The task of a job that quantizes is left out: its hash stays what it was before there was another task.
    silent = {"preset"} | ({"task"} if policy.task == "quantize" else set())
    fields = _without_later(policy, policy.model_dump(mode="json", exclude=silent))
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _without_later(value: Any, dumped: Any) -> Any:
    """Return ``dumped``, the JSON of ``value``, without the later fields that have their default."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        later = value.later_fields if isinstance(value, Frozen) else frozenset()
        silent = {name for name in later if getattr(value, name) == fields[name].get_default()}
        return {name: _without_later(getattr(value, name), each) for name, each in dumped.items() if name not in silent}
    if isinstance(value, tuple):
        return [_without_later(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped


def _overlay(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Merge objects field by field; an object of another ``kind`` replaces the base's as a whole."""
    merged = dict(base)
    for key, value in patch.items():
        # An object without a kind belongs to the base's kind.
        below = base.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):
            merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged


def _check(policy: Policy) -> None:
    if policy.task == "evaluate":
        _check_evaluation(policy)
        return
    _check_weights(policy.weights, "/weights")
    check_activations(policy.activations, policy.weights, "/activations")
    _check_transform(policy.transform, "/transform")
    for index, override in enumerate(policy.overrides):
        _check_pattern(override.match, f"/overrides/{index}/match")
        if override.weights is None and override.activations is None and override.transform is None:
            raise PolicyError(
                f"/overrides/{index}",
                "empty_override",
                "This override names linears and gives them no settings, so it would change nothing. Give it weights, "
                "activations or a transform, or remove it.",
            )
        if override.weights is not None:
            _check_weights(override.weights, f"/overrides/{index}/weights")
        if override.transform is not None:
            _check_transform(override.transform, f"/overrides/{index}/transform")
        # The two formats are checked together, as the linears of this override will have them.
        if override.weights is not None or override.activations is not None:
            activations, weights = override.activations or policy.activations, override.weights or policy.weights
            check_activations(activations, weights, f"/overrides/{index}/activations")
    for field in ("targets", "ignore"):
        for index, pattern in enumerate(getattr(policy, field)):
            _check_pattern(pattern, f"/{field}/{index}", ignored=field == "ignore")
    _check_search(policy)
    _check_training(policy)
    _check_tuning(policy)


def _check_evaluation(policy: Policy) -> None:
    for field in Policy.model_fields:
        if field != "preset" and getattr(policy, field) != getattr(EVALUATE.policy, field):
            # A field that an evaluation would ignore is refused instead.
            raise PolicyError(
                f"/{field}",
                "nothing_is_changed",
                f"task 'evaluate' measures the model as it is, so {field} has nothing to act on. "
                f"Leave {field} out, or choose a preset that quantizes.",
            )


def _check_search(policy: Policy) -> None:
    search = policy.search
    if search is None:
        return
    _require_scales(policy, "search")
    if search.kind == "grid" and not (search.q or search.l2 or search.p):
        raise PolicyError(
            "/search/q",
            "empty_grid",
            "The grid has no statistic to try: list a q or a p, or set search.l2 to true.",
        )
    if search.kind == "paper" and policy.training is not None:
        raise PolicyError(
            "/training",
            "paper_trains_by_itself",
            'search.kind \'paper\' runs its own training families. Set training to {"kind": "none"}.',
        )


def _check_training(policy: Policy) -> None:
    training = policy.training
    if training is None:
        return
    if training.kind == "scales":
        _require_scales(policy, "training")
    if training.kind == "rotation" and policy.residual is None:
        raise PolicyError(
            "/residual",
            "no_rotation_to_learn",
            "training.kind 'rotation' learns the residual rotation, but residual is null. "
            'Set residual to {"kind": "hadamard"}, or choose another training.',
        )


def _check_tuning(policy: Policy) -> None:
    weights = [policy.weights, *(each.weights for each in policy.overrides if each.weights is not None)]
    if policy.tuning is None or policy.tuning.learn != ("scales",):
        return
    # The scales of every other format can be any number, or nearly any.
    if all(each.format in (NumberFormat.MXFP4, NumberFormat.NONE) for each in weights):
        raise PolicyError(
            "/tuning/learn",
            "nothing_to_tune",
            "tuning.learn names the scales alone, and those of mxfp4 are powers of two, which are not learned. "
            'Add \'norms\', or set tuning to {"kind": "none"}.',
        )


def _check_transform(transform: Transform, pointer: str) -> None:
    """Refuse fields of a Hadamard where the kind has none."""
    if transform.kind.is_hadamard:
        return
    for field in ("orders", "permutation"):
        value = getattr(transform, field)
        if value != Transform.model_fields[field].get_default():
            raise PolicyError(
                f"{pointer}/{field}",
                "transform_without_hadamard",
                f"transform.{field} is {value!r}, which is about the blocks of a Hadamard, but transform.kind is "
                f"{transform.kind.value!r}. Use 'rotation' or 'smooth_rotation', or leave {field} out.",
            )


def _require_scales(policy: Policy, field: str) -> None:
    if not policy.transform.kind.scales_channels:
        raise PolicyError(
            f"/{field}",
            "transform_without_scales",
            f"{field} looks for channel scales, but transform.kind is {policy.transform.kind.value!r}. "
            f"Use 'smooth' or 'smooth_rotation', or set {field} to {{\"kind\": \"none\"}}.",
        )


def _check_weights(weights: WeightQuantization, pointer: str) -> None:
    # An override to 'none' is allowed: it leaves its linears alone.
    if not weights.format.quantizes and pointer == "/weights":
        raise PolicyError(
            f"{pointer}/format",
            "nothing_to_quantize",
            f"weights.format {weights.format.value!r} quantizes nothing; "
            f"use {in_words(each for each in NumberFormat if each.quantizes)}.",
        )
    if (weights.granularity == "group") != (weights.group_size is not None):
        raise PolicyError(
            f"{pointer}/group_size",
            "group_size_mismatch",
            f"granularity is {weights.granularity!r}, {given(weights.group_size)}. "
            "Give a group_size with granularity 'group', and only then.",
        )
    if not weights.symmetric and (weights.format is not NumberFormat.INT4 or weights.granularity == "tensor"):
        raise PolicyError(
            f"{pointer}/symmetric",
            "no_kernel_for_zero_points",
            f"weights are {weights.format.value} with a scale for each {weights.granularity} and a zero point. Kernels "
            "take zero points of int4 weights, per group or channel. Set symmetric to true, or use int4 in groups.",
        )
    own = weights.format.group_size
    if own is not None and weights.group_size != own:
        raise PolicyError(
            f"{pointer}/group_size",
            "fixed_group_size",
            f"{weights.format.value} has groups of {own} and no others; granularity is {weights.granularity!r}, "
            f"{given(weights.group_size)}. Leave both out.",
        )
    if weights.format.spec.plain_weights and (weights.clip != "none" or weights.granularity == "group"):
        raise PolicyError(
            f"{pointer}/format",
            f"{weights.format.value}_is_plain",
            f"{weights.format.value} weights have one scale a channel or a tensor and are not clipped. "
            "Set clip to 'none' and granularity to 'channel'.",
        )


def _check_pattern(pattern: str, pointer: str, *, ignored: bool = False) -> None:
    try:
        check_pattern(pattern)
        check_name(pattern, ignored=ignored)
    except PatternError as error:
        raise PolicyError(pointer, error.code, error.detail) from None
