"""From a partial policy to the whole one, and to the hash that names it.

``PolicyError`` carries a JSON pointer into the policy, a machine-readable code and a remedy.
"""

import hashlib
import json
import re
from typing import Any

from quant_engine.policy.presets import PRESETS
from quant_engine.policy.types import NumberFormat, Policy, WeightQuantization


class PolicyError(ValueError):
    """A policy whose fields are each valid but do not make sense together."""

    def __init__(self, pointer: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.code = code
        self.detail = detail


def resolve_policy(requested: Policy) -> Policy:
    """The preset with the request's explicit fields laid over it, checked as a whole.

    Raises:
        PolicyError: the preset is unknown, or the fields contradict each other.
    """
    explicit = requested.model_dump(mode="json", exclude_unset=True)
    if requested.preset is None:
        merged = explicit
    elif requested.preset in PRESETS:
        merged = _overlay(PRESETS[requested.preset].policy.model_dump(mode="json"), explicit)
    else:
        known = ", ".join(PRESETS)
        raise PolicyError("/preset", "unknown_preset", f"There is no preset of this name. Choose one of: {known}.")
    policy = Policy.model_validate(merged)
    _check(policy)
    return policy


def policy_hash(policy: Policy) -> str:
    """``sha256:`` and the digest of the canonical JSON; the preset's name does not count, only what it says."""
    fields = policy.model_dump(mode="json", exclude={"preset"})
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` means the linear ``name``: ``re:`` and a full match, the name, or its last part."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return name == pattern or name.rsplit(".", 1)[-1] == pattern


def _overlay(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Merge objects field by field; an object of another ``kind`` replaces the base's as a whole."""
    merged = dict(base)
    for key, value in patch.items():
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
    _check_weights(policy.weights, "/weights")
    for index, override in enumerate(policy.overrides):
        _check_pattern(override.match, f"/overrides/{index}/match")
        if override.weights is not None:
            _check_weights(override.weights, f"/overrides/{index}/weights")
    for field in ("targets", "ignore"):
        for index, pattern in enumerate(getattr(policy, field)):
            _check_pattern(pattern, f"/{field}/{index}")
    if policy.search is not None and not (policy.search.q or policy.search.l2):
        raise PolicyError(
            "/search/q",
            "empty_grid",
            "The grid has no statistic to try: list a q, or set search.l2 to true.",
        )
    scaled = policy.transform.kind.scales_channels
    for field in ("search", "training"):
        if getattr(policy, field) is not None and not scaled:
            raise PolicyError(
                f"/{field}",
                "transform_without_scales",
                f"{field} looks for channel scales, but transform.kind is {policy.transform.kind.value!r}. "
                f"Use 'smooth' or 'smooth_rotation', or set {field} to null.",
            )


def _check_weights(weights: WeightQuantization, pointer: str) -> None:
    if weights.format is NumberFormat.NONE and pointer == "/weights":
        raise PolicyError(
            f"{pointer}/format",
            "nothing_to_quantize",
            "weights.format 'none' quantizes nothing; use int2 to int8.",
        )
    if (weights.granularity == "group") != (weights.group_size is not None):
        raise PolicyError(
            f"{pointer}/group_size",
            "group_size_mismatch",
            f"group_size is {weights.group_size} with granularity {weights.granularity!r}. "
            "Give a group_size with granularity 'group', and only then.",
        )


def _check_pattern(pattern: str, pointer: str) -> None:
    if not pattern.startswith("re:"):
        return
    try:
        re.compile(pattern[3:])
    # A huge repetition overflows, deep nesting recurses. The error's text repeats parts of the pattern, its place not.
    except (re.error, OverflowError, RecursionError) as error:
        place = getattr(error, "pos", None)
        where = "" if place is None else f" at character {place}"
        raise PolicyError(
            pointer, "bad_pattern", f"Not a regular expression{where}. Correct the pattern after 're:'."
        ) from error
