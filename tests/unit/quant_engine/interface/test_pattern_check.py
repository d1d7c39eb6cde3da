"""Every entry of a policy's patterns means something in the model, or is refused with what was probably meant."""

from typing import Any

import pytest

from quant_engine.interface.architectures import ARCHITECTURES, Architecture, architecture_of
from quant_engine.interface.pattern_check import check_patterns
from quant_engine.interface.targets import is_targeted, linear_names
from quant_engine.policy import PRESETS, NumberFormat, Policy, PolicyError, linear_settings, resolve_policy
from quant_engine.policy.known_names import EVERY_LINEAR, HOLDERS, NEVER_QUANTIZED

LLAMA = architecture_of({"model_type": "llama"})
PHI3 = architecture_of({"model_type": "phi3"})
INT8 = {"format": "int8"}
NONE = {"format": "none"}


def _findings(fields: dict[str, Any], architecture: Architecture = LLAMA, blocks: int = 3) -> dict[str, str]:
    """Return code by pointer. The policy is as a client sends it, without the checks that need no model."""
    policy = Policy.model_validate({"ignore": [], **fields})
    return {
        each.pointer: each.code for each in check_patterns(policy, linear_names(architecture, blocks), architecture)
    }


def _detail(fields: dict[str, Any], architecture: Architecture = LLAMA) -> str:
    policy = Policy.model_validate({"ignore": [], **fields})
    [finding] = check_patterns(policy, linear_names(architecture, 3), architecture)
    return finding.detail


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.model_type)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_every_architecture(preset: str, architecture: Architecture) -> None:
    policy = resolve_policy(Policy(preset=preset))
    assert check_patterns(policy, linear_names(architecture, 2), architecture) == []


def test_the_known_names_are_those_of_the_architectures() -> None:
    leaves = {name.rpartition(".")[2] for each in ARCHITECTURES for name in linear_names(each, 1)}
    assert leaves == set(EVERY_LINEAR)
    norms = {each.final_norm.rpartition(".")[2] for each in ARCHITECTURES}
    norms |= {norm for each in ARCHITECTURES for norm in each.post_norms}
    norms |= {site.producer for each in ARCHITECTURES for site in each.sites if "norm" in site.producer}
    assert norms | {"lm_head", "embed_tokens"} <= set(NEVER_QUANTIZED)
    holders = {part for each in ARCHITECTURES for name in linear_names(each, 1) for part in name.split(".")[:-1]}
    assert holders - {"0"} == set(HOLDERS)


@pytest.mark.parametrize(
    "fields",
    [
        {"targets": ["Linear"]},
        {"targets": ["down_proj", "*.self_attn.*"]},
        {"targets": [r"re:.*layers\.2\..*"]},
        {"targets": ["model.layers.2.mlp.up_proj"]},
        {"ignore": ["lm_head"]},
        {"ignore": ["re:.*lm_head", "re:.*embed_tokens.*", "re:.*norm", "model.norm", "input_layernorm"]},
        {"ignore": ["re:.*mlp.gate$", "re:vision_tower.*", "re:.*vision_tower.*", "re:multi_modal_projector.*"]},
        {"ignore": ["re:.*lm_head", "re:visual.*", "re:model.visual.*", "re:.*mlp.shared_expert_gate$"]},
        {"ignore": ["o_proj"]},  # exists, and is not targeted
        {"ignore": ["model.layers.0.mlp.down_proj"]},
        {"overrides": [{"match": "model.layers.0.*", "weights": INT8}]},
        {"overrides": [{"match": "o_proj", "weights": NONE}]},
        {"overrides": [{"match": "Linear", "weights": INT8}]},
    ],
)
def test_what_means_something_is_accepted(fields: dict[str, Any]) -> None:
    assert _findings(fields) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"targets": ["down_proj", "down_porj"]}, {"/policy/targets/1": "no_match"}),
        ({"targets": ["down_proj", "lm_head"]}, {"/policy/targets/1": "never_quantized"}),
        ({"targets": ["re:.*lm_head"]}, {"/policy/targets/0": "never_quantized"}),
        ({"targets": ["*norm"]}, {"/policy/targets/0": "never_quantized"}),
        ({"targets": ["model.embed_tokens"]}, {"/policy/targets/0": "never_quantized"}),
        ({"targets": ["mlp"]}, {"/policy/targets/0": "not_a_linear"}),
        ({"targets": ["model.layers.0"]}, {"/policy/targets/0": "not_a_linear"}),
        ({"targets": [r"re:model\.layers\.\d+"]}, {"/policy/targets/0": "not_a_linear"}),
        ({"targets": ["qkv_proj"]}, {"/policy/targets/0": "no_match"}),
        ({"targets": ["model.layers.3.mlp.down_proj"]}, {"/policy/targets/0": "no_match"}),
        ({"targets": [".*down_proj"]}, {"/policy/targets/0": "no_match"}),
        ({"targets": ["re:vision_tower.*"]}, {"/policy/targets/0": "no_match"}),
        ({"targets": ["LlamaMLP"]}, {"/policy/targets/0": "class_name"}),
        ({"ignore": ["re:model.layer.0.*"]}, {"/policy/ignore/0": "no_match"}),
        ({"ignore": ["lm_head", "lm_haed"]}, {"/policy/ignore/1": "no_match"}),
        ({"ignore": ["self_attn"]}, {"/policy/ignore/0": "not_a_linear"}),
        ({"ignore": ["gate"]}, {"/policy/ignore/0": "no_match"}),
        ({"overrides": [{"match": "lm_head", "weights": INT8}]}, {"/policy/overrides/0/match": "never_quantized"}),
        ({"overrides": [{"match": "donw_proj", "weights": INT8}]}, {"/policy/overrides/0/match": "no_match"}),
        ({"overrides": [{"match": "o_proj", "weights": INT8}]}, {"/policy/overrides/0/match": "not_targeted"}),
        ({"targets": ["o_proj"], "ignore": ["Linear"]}, {"/policy/targets": "nothing_left"}),
        ({"ignore": ["down_proj"]}, {"/policy/targets": "nothing_left"}),
        (
            {"targets": ["q_porj", "k_proj", "x"], "ignore": ["w"], "overrides": [{"match": "y"}, {"match": "k_proj"}]},
            {
                "/policy/targets/0": "no_match",
                "/policy/targets/2": "no_match",
                "/policy/ignore/0": "no_match",
                "/policy/overrides/0/match": "no_match",
            },
        ),
    ],
)
def test_what_means_nothing_is_refused_all_at_once(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert _findings(fields) == expected


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("down_porj", "Did you mean 'down_proj'?"),
        ("*.down_porj", "Did you mean 'down_proj'?"),
        ("re:.*dwon_proj", "Did you mean 'down_proj'?"),
        ("re:model.layer.0.*", "Did you mean 'layers'?"),
        ("model.layers.7.mlp.down_proj", "Did you mean 'model.layers.0.mlp.down_proj'?"),
        (".*down_proj", "put 're:' in front"),
        ("re:down_proj", "An expression has to match a whole name"),
        ("linear", "Did you mean 'Linear'?"),
        ("qkv_proj", "Name its parts instead: q_proj, k_proj, v_proj."),
        ("mlp", "write a glob such as *.mlp.*"),
        ("xyzzy", "Last components of linears are q_proj, k_proj"),
    ],
)
def test_a_refusal_offers_what_was_probably_meant(pattern: str, told: str) -> None:
    detail = _detail({"targets": [pattern]})
    assert told in detail
    assert "porj" not in detail
    assert "xyzzy" not in detail


def test_parts_of_a_fused_linear_work_in_overrides_as_in_targets() -> None:
    parts = [{"match": part, "weights": INT8} for part in ("q_proj", "k_proj", "v_proj")]
    fields = {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "overrides": parts}
    assert _findings(fields, PHI3) == {}
    settings = linear_settings("model.layers.0.self_attn.qkv_proj", Policy.model_validate(fields))
    assert settings.weights.format is NumberFormat.INT8
    one = {"targets": ["qkv_proj"], "overrides": [{"match": "re:.*[qkv]_proj", "weights": INT8}]}
    assert _findings(one, PHI3) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"targets": ["q_proj", "v_proj", "o_proj"]},
            {"/policy/targets/0": "partly_fused", "/policy/targets/1": "partly_fused"},
        ),
        (
            {"targets": ["qkv_proj"], "overrides": [{"match": "q_proj", "weights": INT8}]},
            {"/policy/overrides/0/match": "partly_fused"},
        ),
        (
            {"targets": ["gate_up_proj"], "overrides": [{"match": "up_proj", "weights": NONE}]},
            {"/policy/overrides/0/match": "partly_fused"},
        ),
        # One that is not quantized has no settings to contradict each other.
        ({"targets": ["o_proj"], "overrides": [{"match": "q_proj", "weights": NONE}]}, {}),
    ],
)
def test_some_parts_of_a_fused_linear_are_refused_by_name(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert _findings(fields, PHI3) == expected
    if expected:
        policy = Policy.model_validate({"ignore": [], **fields})
        assert "in one linear" in check_patterns(policy, linear_names(PHI3, 1), PHI3)[0].detail


def test_parts_with_different_settings_have_no_common_ones() -> None:
    policy = Policy.model_validate({"targets": ["qkv_proj"], "overrides": [{"match": "q_proj", "weights": INT8}]})
    with pytest.raises(PolicyError, match="one linear"):
        is_targeted("model.layers.0.self_attn.qkv_proj", policy)


def test_an_evaluation_has_no_patterns_to_check() -> None:
    assert check_patterns(resolve_policy(Policy(preset="evaluate")), linear_names(PHI3, 1), PHI3) == []
