"""What a universal checkpoint has no place for is refused before anything is computed."""

from typing import Any

import pytest

from quant_engine.policy import PRESETS, Policy, PolicyError, check_profile, resolve_policy

_UNIVERSAL = (
    "rtn-w4a4",
    "omniquant-w4a4",
    "smoothquant-w8a8",
    "w4a16",
    "w4a16-g128",
    "w4a8-fp8",
    "w8a8",
    "fp8",
    "nvfp4",
    "evaluate",
)
_FUSED: dict[str, Any] = {"preset": "w8a8", "residual": {"kind": "hadamard"}}
_ROTATION: dict[str, Any] = {"kind": "rotation", "block_size": 16}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_to_the_profiles_that_they_are_for(name: str) -> None:
    policy = PRESETS[name].policy
    check_profile(policy, "rotated")
    if name in _UNIVERSAL:
        check_profile(policy, "universal")
        return
    with pytest.raises(PolicyError) as caught:
        check_profile(policy, "universal")
    assert caught.value.code == "not_universal"
    assert "output.profile to 'rotated'" in caught.value.detail


@pytest.mark.parametrize(
    "fields",
    [
        _FUSED,
        _FUSED | {"transform": {"kind": "smooth_rotation"}},
        {"preset": "adaptive-w4a4", "online": "none", "activations": {"clip": "none"}},
        {"preset": "spinquant-w4a4", "online": "none", "activations": {"clip_ratio": 1.0}},
        {"preset": "mxfp4", "online": "none"},
        {"preset": "w4a16", "overrides": [{"match": "o_proj", "weights": {"format": "int8"}}]},
        # Only integers are clipped, so a ratio beside 'none' clips nothing.
        {"preset": "w4a16", "activations": {"clip_ratio": 0.9}},
        {"preset": "omniquant-w4a4", "training": {"learn": ["scales"]}},
    ],
)
def test_what_fuses_passes(fields: dict[str, Any]) -> None:
    check_profile(resolve_policy(Policy.model_validate(fields)), "universal")


@pytest.mark.parametrize(
    ("fields", "pointer", "remedy"),
    [
        ({"transform": {"kind": "rotation"}, "online": "inner"}, "/transform/kind", "policy.online to 'none'"),
        (
            {"preset": "w8a8", "online": "inner"}
            | {
                "overrides": [
                    {"match": "o_proj", "weights": {"format": "int8"}},
                    {"match": "v_proj", "transform": _ROTATION},
                ]
            },
            "/overrides/1/transform/kind",
            "policy.online",
        ),
        (
            {"preset": "w8a8", "online": "all", "selection": {"kind": "lowest_error", "candidates": ["none", "cat"]}},
            "/selection/candidates/1",
            "policy.online",
        ),
        (
            {"preset": "w8a8", "online": "all", "selection": {"candidates": ["none", _ROTATION]}},
            "/selection/candidates/1",
            "policy.online",
        ),
        (
            {"preset": "w8a8", "online": "all"}
            | {"selection": {"kind": "kurtosis", "outlying": "smooth", "typical": "wush"}},
            "/selection/typical",
            "policy.online",
        ),
        ({"preset": "w8a8", "activations": {"clip": "search"}}, "/activations", "clip to 'none'"),
        ({"preset": "w8a8", "activations": {"clip_ratio": 0.9}}, "/activations", "clip_ratio to 1"),
        (
            {"preset": "w8a8"}
            | {"overrides": [{"match": "o_proj", "activations": {"format": "int8", "clip_ratio": 0.9}}]},
            "/overrides/0/activations",
            "clip_ratio to 1",
        ),
        (
            {"preset": "omniquant-w4a4", "training": {"learn": ["scales", "activation_clip"]}},
            "/training/learn",
            "Leave 'activation_clip' out",
        ),
    ],
)
def test_what_would_be_online_or_clipped_is_named_with_its_remedy(
    fields: dict[str, Any], pointer: str, remedy: str
) -> None:
    policy = resolve_policy(Policy.model_validate(fields))
    with pytest.raises(PolicyError) as caught:
        check_profile(policy, "universal")
    assert (caught.value.pointer, caught.value.code) == (pointer, "not_universal")
    assert remedy in caught.value.detail
    assert caught.value.detail.endswith(".")
    check_profile(policy, "rotated")
