"""The policy: presets, overlays, the hash, and what is refused."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quant_engine.policy import (
    PRESETS,
    GptqSettings,
    JobRequest,
    NumberFormat,
    Policy,
    PolicyError,
    TransformKind,
    policy_hash,
    resolve_policy,
)

# The body that the HTTP contract prints as its example, without the publication that this version refuses.
CONTRACT_EXAMPLE: dict[str, Any] = {
    "model": {"source": "hub", "id": "HuggingFaceTB/SmolLM2-135M", "revision": "main", "credential": None},
    "policy": {
        "preset": "trainable-smoothrot-w4a4",
        "weights": {
            "format": "int4",
            "granularity": "channel",
            "group_size": None,
            "symmetric": True,
            "clip": "none",
            "rounding": "rtn",
        },
        "activations": {"format": "int4", "granularity": "token", "symmetric": True, "clip_ratio": 1.0},
        "targets": ["down_proj"],
        "ignore": ["lm_head"],
        "transform": {"kind": "smooth_rotation", "alpha": 0.5, "statistic": {"kind": "quantile", "q": 0.997}},
        "search": {
            "kind": "grid",
            "alpha": [0.45, 0.475, 0.5],
            "q": [0.994, 0.997, 1.0],
            "scope": "shared",
            "layers": {"critical": 3, "normal": 2},
        },
        "training": {"steps": 800, "warmup": 5, "patience": 80, "learning_rates": [0.02], "scope": "shared"},
        "selection": {"kind": "lowest_error", "candidates": ["none", "rotation", "smooth_rotation"]},
        "overrides": [{"match": "re:.*layers\\.0\\..*", "weights": {"format": "int8"}}],
    },
    "calibration": {"dataset": "wikitext2", "samples": 256, "sequence_length": 128, "seed": 0, "holdout": 0.2},
    "evaluation": {"perplexity": {"dataset": "wikitext2", "tokens": 16384}},
    "limits": {"max_queue_seconds": 3600, "max_run_seconds": 14400},
    "metadata": {"team": "search"},
}


def test_the_contract_example_is_accepted() -> None:
    request = JobRequest.model_validate(CONTRACT_EXAMPLE)
    policy = resolve_policy(request.policy)
    assert policy.training is not None
    assert policy.training.learning_rates == (0.02,)
    assert policy.overrides[0].weights is not None
    assert policy.overrides[0].weights.format is NumberFormat.INT8


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_to_itself(name: str) -> None:
    assert resolve_policy(Policy(preset=name)) == PRESETS[name].policy


def test_presets_differ_in_what_they_say_and_can_be_told_apart() -> None:
    hashes = {policy_hash(preset.policy) for preset in PRESETS.values()}
    assert len(hashes) == len(PRESETS)
    assert all(preset.name == name == preset.policy.preset for name, preset in PRESETS.items())
    assert len({preset.description for preset in PRESETS.values()}) == len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json_and_asks_for_nothing_that_is_ignored(name: str) -> None:
    policy = PRESETS[name].policy
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert policy.weights.rounding == "gptq" or policy.weights.gptq == GptqSettings()


def test_fields_of_another_kind_of_training_are_overridden_one_by_one() -> None:
    """A kind that is left out is the preset's, as far as the fields are common to both."""
    for name in ("best-w4a4", "spinquant-w4a4"):
        training = PRESETS[name].policy.training
        assert training is not None
        resolved = resolve_policy(Policy.model_validate({"preset": name, "training": {"steps": 7}}))
        assert resolved.training == training.model_copy(update={"steps": 7})


def test_explicit_fields_override_the_preset_and_leave_the_rest() -> None:
    requested = Policy.model_validate(
        {"preset": "trainable-smoothrot-w4a4", "training": {"steps": 10}, "weights": {"format": "int8"}}
    )
    policy = resolve_policy(requested)
    preset = PRESETS["trainable-smoothrot-w4a4"].policy
    assert policy.training is not None
    assert preset.training is not None
    assert policy.training == preset.training.model_copy(update={"steps": 10})
    assert policy.weights.format is NumberFormat.INT8
    assert policy.search == preset.search


@pytest.mark.parametrize(("name", "size"), [("nvfp4", 16), ("mxfp4", 32)])
def test_a_format_with_groups_of_its_own_needs_no_group_size(name: str, size: int) -> None:
    grids = {"weights": {"format": name}, "activations": {"format": name}}
    for base in ({}, {"preset": "smoothrot-w4a4"}, {"preset": "w4a16"}):
        fields: dict[str, Any] = base | grids
        policy = resolve_policy(Policy.model_validate(fields))
        assert (policy.weights.granularity, policy.weights.group_size) == ("group", size)
        assert policy.weights.format.bits == 4
        assert resolve_policy(policy) == policy
    resolve_policy(Policy.model_validate({"preset": name, "activations": {"format": "none"}}))


def test_null_switches_a_preset_stage_off() -> None:
    policy = resolve_policy(Policy.model_validate({"preset": "trainable-smoothrot-w4a4", "training": None}))
    assert policy.training is None
    assert policy.search is not None


@pytest.mark.parametrize(
    ("preset", "field", "given"),
    [
        ("best-w4a4", "training", {"steps": 7, "batch_samples": 2, "inputs": "original"}),
        ("spinquant-w4a4", "training", {"learning_rate": 0.5, "batch_samples": 2}),
        ("paper-2606.09927", "search", {"steps": 4}),
        ("trainable-smoothrot-w4a4", "training", {"batch_tokens": None}),
    ],
)
def test_fields_of_the_presets_own_kind_need_no_kind(preset: str, field: str, given: dict[str, Any]) -> None:
    found = getattr(resolve_policy(Policy.model_validate({"preset": preset, field: given})), field)
    own = getattr(PRESETS[preset].policy, field)
    assert found == own.model_copy(update=given)


def test_another_kind_replaces_the_whole_object() -> None:
    requested = Policy.model_validate(
        {
            "preset": "trainable-smoothrot-w4a4",
            "transform": {"kind": "rotation"},
            "search": None,
            "training": None,
        }
    )
    transform = resolve_policy(requested).transform
    assert transform.kind is TransformKind.ROTATION
    assert transform.statistic.kind == "absmax"


def test_the_hash_is_stable_and_ignores_the_presets_name() -> None:
    assert policy_hash(resolve_policy(Policy(preset="smoothrot-w4a4"))) == policy_hash(resolve_policy(Policy()))
    one = policy_hash(resolve_policy(Policy.model_validate({"targets": ["down_proj"], "ignore": ["lm_head"]})))
    other = policy_hash(resolve_policy(Policy.model_validate({"ignore": ["lm_head"], "targets": ["down_proj"]})))
    assert one == other
    assert one.startswith("sha256:")
    assert len(one) == len("sha256:") + 64


def test_a_later_field_counts_where_it_is_used_also_in_lists() -> None:
    plain, zigzag = {"kind": "smooth_rotation"}, {"kind": "smooth_rotation", "permutation": "zigzag"}
    hashes = [
        policy_hash(resolve_policy(Policy.model_validate(fields)))
        for fields in (
            {"transform": plain},
            {"transform": zigzag},
            {"overrides": [{"match": "down_proj", "transform": plain}]},
            {"overrides": [{"match": "down_proj", "transform": zigzag}]},
        )
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("field", [{"permutation": "zigzag"}, {"orders": "power_of_two"}])
@pytest.mark.parametrize("place", ["", "/overrides/0"])
def test_the_blocks_of_a_hadamard_need_a_hadamard(field: dict[str, str], place: str) -> None:
    transform = {"transform": {"kind": "kronecker", **field}}
    requested = {"overrides": [{"match": "down_proj", **transform}]} if place else transform
    with pytest.raises(PolicyError) as caught:
        resolve_policy(Policy.model_validate(requested))
    (name,) = field
    assert (caught.value.pointer, caught.value.code) == (f"{place}/transform/{name}", "transform_without_hadamard")
    assert "smooth_rotation" in caught.value.detail


def test_a_tuning_needs_scales_that_can_be_learned() -> None:
    fields = {"preset": "mxfp4", "tuning": {"learn": ["scales"]}}
    with pytest.raises(PolicyError) as caught:
        resolve_policy(Policy.model_validate(fields))
    assert (caught.value.pointer, caught.value.code) == ("/tuning/learn", "nothing_to_tune")
    nvfp4 = {"weights": {"format": "nvfp4"}, "activations": {"format": "nvfp4"}}
    mixed = fields | {"overrides": [{"match": "down_proj"} | nvfp4]}
    assert resolve_policy(Policy.model_validate(mixed)).tuning is not None
    assert resolve_policy(Policy.model_validate({"preset": "mxfp4", "tuning": {"kind": "none"}})).tuning is None


def test_the_hash_of_a_policy_that_quantizes_does_not_know_of_tasks() -> None:
    policy = resolve_policy(Policy(preset="w4a16"))
    # Fields that are younger than stored hashes do not count either.
    policy = policy.model_copy(update={"tuning": None})
    fields = policy.model_dump(mode="json", exclude={"preset", "task", "tuning"})
    for later in ("orders", "permutation"):
        del fields["transform"][later]
    del fields["activations"]["group_size"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert policy_hash(policy) == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    assert policy_hash(PRESETS["evaluate"].policy) != policy_hash(
        PRESETS["evaluate"].policy.model_copy(update={"task": "quantize"})
    )


def test_the_task_alone_means_the_preset_of_its_name() -> None:
    named = resolve_policy(Policy(preset="evaluate"))
    assert resolve_policy(Policy(task="evaluate")) == named.model_copy(update={"preset": None})
    assert named.weights.format is named.activations.format is NumberFormat.NONE


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"preset": "evaluate", "weights": {"format": "int8"}}, "/weights", "nothing_is_changed"),
        ({"preset": "evaluate", "targets": ["down_proj"]}, "/targets", "nothing_is_changed"),
        ({"task": "evaluate", "search": {"kind": "paper"}}, "/search", "nothing_is_changed"),
        ({"preset": "w8a8", "task": "evaluate"}, "/weights", "nothing_is_changed"),
        ({"preset": "evaluate", "task": "quantize"}, "/weights/format", "nothing_to_quantize"),
    ],
)
def test_a_measurement_that_would_change_something_is_refused(fields: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(PolicyError) as refused:
        resolve_policy(Policy.model_validate(fields))
    assert (refused.value.pointer, refused.value.code) == (pointer, code)


@given(alpha=st.floats(0, 1), q=st.floats(0.5, 1))
def test_the_hash_survives_a_round_trip_through_json(alpha: float, q: float) -> None:
    policy = resolve_policy(
        Policy.model_validate({"transform": {"alpha": alpha, "statistic": {"kind": "quantile", "q": q}}})
    )
    assert policy_hash(Policy.model_validate_json(policy.model_dump_json())) == policy_hash(policy)


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"preset": "no-such-preset"}, "/preset", "unknown_preset"),
        ({"weights": {"format": "none"}}, "/weights/format", "nothing_to_quantize"),
        ({"weights": {"granularity": "group"}}, "/weights/group_size", "group_size_mismatch"),
        ({"weights": {"group_size": 64}}, "/weights/group_size", "group_size_mismatch"),
        ({"targets": ["re:("]}, "/targets/0", "bad_pattern"),
        ({"targets": ["re:a{99999999999}"]}, "/targets/0", "bad_pattern"),
        ({"overrides": [{"match": "o_proj"}]}, "/overrides/0", "empty_override"),
        ({"overrides": [{"match": "re:["}]}, "/overrides/0/match", "bad_pattern"),
        ({"targets": ["re:(?u)(?a)x"]}, "/targets/0", "bad_pattern"),
        ({"targets": ["down_proj", "down_porj"]}, "/targets/1", "no_match"),
        ({"targets": ["lm_head"]}, "/targets/0", "never_quantized"),
        ({"ignore": ["lm_head", "lm_haed"]}, "/ignore/1", "no_match"),
        ({"ignore": ["Embedding"]}, "/ignore/0", "class_name"),
        ({"overrides": [{"match": "embed_tokens"}]}, "/overrides/0/match", "never_quantized"),
        ({"overrides": [{"match": "mlp"}]}, "/overrides/0/match", "not_a_linear"),
        ({"transform": {"kind": "rotation"}, "training": {}}, "/training", "transform_without_scales"),
        ({"transform": {"kind": "none"}, "search": {}}, "/search", "transform_without_scales"),
        ({"search": {"q": []}}, "/search/q", "empty_grid"),
        ({"ignore": ["lm_head", "re:*"]}, "/ignore/1", "bad_pattern"),
        ({"transform": {"kind": "cat"}, "search": {"kind": "paper"}}, "/search", "transform_without_scales"),
        ({"search": {"kind": "paper"}, "training": {}}, "/training", "paper_trains_by_itself"),
        ({"preset": "paper-2606.09927", "training": {"kind": "block"}}, "/training", "paper_trains_by_itself"),
        ({"training": {"kind": "rotation"}}, "/residual", "no_rotation_to_learn"),
        ({"preset": "spinquant-w4a4", "residual": None}, "/residual", "no_rotation_to_learn"),
        ({"activations": {"clip": "search", "clip_ratio": 0.9}}, "/activations/clip_ratio", "clip_given_and_searched"),
        (
            {"overrides": [{"match": "o_proj", "activations": {"clip": "search", "clip_ratio": 0.9}}]},
            "/overrides/0/activations/clip_ratio",
            "clip_given_and_searched",
        ),
        ({"weights": {"format": "fp8"}}, "/activations/format", "mixed_number_kinds"),
        ({"activations": {"format": "fp8"}}, "/activations/format", "mixed_number_kinds"),
        (
            {"preset": "fp8", "overrides": [{"match": "o_proj", "weights": {"format": "int8"}}]},
            "/overrides/0/activations/format",
            "mixed_number_kinds",
        ),
        ({"preset": "nvfp4", "weights": {"group_size": 32}}, "/weights/group_size", "fixed_group_size"),
        (
            {"preset": "mxfp4", "weights": {"format": "int4", "granularity": "channel"}},
            "/weights/group_size",
            "group_size_mismatch",
        ),
        ({"weights": {"format": "nvfp4", "granularity": "channel"}}, "/weights/group_size", "fixed_group_size"),
        ({"preset": "nvfp4", "activations": {"format": "mxfp4"}}, "/activations/format", "mixed_number_kinds"),
        ({"preset": "nvfp4", "activations": {"format": "int8"}}, "/activations/format", "mixed_number_kinds"),
        ({"preset": "fp8", "weights": {"format": "mxfp4"}}, "/activations/format", "mixed_number_kinds"),
        ({"preset": "nvfp4", "activations": {"clip": "search"}}, "/activations/clip", "groups_are_not_clipped"),
        ({"preset": "mxfp4", "activations": {"clip_ratio": 0.9}}, "/activations/clip", "groups_are_not_clipped"),
        ({"preset": "fp8", "weights": {"clip": "mse"}}, "/weights/format", "fp8_is_plain"),
        ({"preset": "fp8", "weights": {"granularity": "group", "group_size": 64}}, "/weights/format", "fp8_is_plain"),
        (
            {"overrides": [{"match": "o_proj", "weights": {}}, {"match": "q_proj", "weights": {"group_size": 32}}]},
            "/overrides/1/weights/group_size",
            "group_size_mismatch",
        ),
    ],
)
def test_contradictions_are_refused_with_a_pointer(fields: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(PolicyError) as caught:
        resolve_policy(Policy.model_validate(fields))
    assert (caught.value.pointer, caught.value.code) == (pointer, code)
    assert caught.value.detail.endswith(".")


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": {"format": "fp8"}, "activations": {"format": "fp8"}},
        {"weights": {"format": "fp8"}, "activations": {"format": "none"}},
        {"overrides": [{"match": "o_proj", "weights": {"format": "none"}, "activations": {"format": "fp8"}}]},
        {"overrides": [{"match": "o_proj", "weights": {"format": "none"}}]},
        {"activations": {"clip": "search"}},
        {"transform": {"kind": "rotation"}, "training": {"kind": "block", "learn": ["weight_clip"]}},
        {"transform": {"kind": "rotation"}, "training": {"kind": "rotation"}, "residual": {}},
        {"transform": {"kind": "kronecker"}, "training": {}, "selection": {}},
        {"search": {"q": [], "p": [3.0]}},
        {"search": {"q": [], "l2": True}},
        {"targets": ["Linear"], "ignore": ["re:.*lm_head", "embed_tokens", "re:.*mlp.gate$"]},
        {"targets": ["re:(([a-z0-9_.])+)+!", "*.mlp.*"]},
    ],
)
def test_what_goes_together_is_accepted(fields: dict[str, Any]) -> None:
    resolve_policy(Policy.model_validate(fields))


_PRESET = {"preset": "w4a16"}


@pytest.mark.parametrize(
    "body",
    [
        {"model": {"id": "a/b/c"}, "policy": _PRESET},
        {"model": {"id": "../etc"}, "policy": _PRESET},
        {"model": {"id": "a--b"}, "policy": _PRESET},
        {"model": {"id": "modèle"}, "policy": _PRESET},
        {"model": {"id": "a\n"}, "policy": _PRESET},
        {"model": {"id": "ok", "revision": "-x"}, "policy": _PRESET},
        {"model": {"id": "ok", "path": "/etc"}, "policy": _PRESET},
        {"model": {"id": "ok"}, "surprise": 1, "policy": _PRESET},
        {"model": {"id": "ok"}, "policy": {"transform": {"statistic": {"kind": "quantile", "q": 0.49}}}},
        {"model": {"id": "ok"}, "policy": {"transform": {"statistic": {"kind": "quantile", "q": 1.01}}}},
        {"model": {"id": "ok"}, "policy": {"search": {"q": [0.3]}}},
        {"model": {"id": "ok"}, "policy": {"transform": {"alpha": float("nan")}}},
        {"model": {"id": "ok"}, "policy": {"training": {"steps": True}}},
        {"model": {"id": "ok"}, "policy": {"training": {"steps": 2**31}}},
        {"model": {"id": "ok"}, "policy": {"targets": ["down\x00proj"]}},
        {"model": {"id": "ok"}, "calibration": {"dataset": {"texts": ["\ud800"]}}, "policy": _PRESET},
        {"model": {"id": "ok"}, "calibration": {"holdout": 1.0}, "policy": _PRESET},
    ],
)
def test_bad_bodies_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobRequest.model_validate(body)


def test_importing_the_policy_loads_no_torch() -> None:
    # An installation of the client alone has no RE2, and needs it for no preset.
    code = (
        "import sys; from quant_engine.policy import Policy, resolve_policy; resolve_policy(Policy(preset='w4a16')); "
        "sys.exit(bool({'torch', 'numpy', 're2'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_INT4_GROUPS = {"format": "int4", "granularity": "group", "group_size": 64}


@pytest.mark.parametrize(
    ("weights", "activations", "code"),
    [
        (_INT4_GROUPS, {"granularity": "group"}, "group_size_mismatch"),
        (_INT4_GROUPS, {"group_size": 64}, "group_size_mismatch"),
        (_INT4_GROUPS | {"group_size": 32}, _INT4_GROUPS | {"group_size": 32}, "no_kernel_for_groups"),
        (_INT4_GROUPS, {"format": "int3", "granularity": "group", "group_size": 64}, "no_kernel_for_groups"),
        (_INT4_GROUPS | {"group_size": 128}, _INT4_GROUPS, "groups_differ"),
        ({"format": "int4"}, _INT4_GROUPS, "groups_differ"),
        (_INT4_GROUPS, _INT4_GROUPS | {"clip_ratio": 0.9}, "groups_are_not_clipped"),
        (_INT4_GROUPS, _INT4_GROUPS | {"clip": "search"}, "groups_are_not_clipped"),
        ({"format": "int4"}, {"format": "int4", "symmetric": False}, "no_kernel_for_zero_points"),
        ({"format": "int4"}, {"format": "int8", "symmetric": False}, "no_kernel_for_zero_points"),
        ({"format": "int8"}, {"format": "int8", "symmetric": False, "clip": "search"}, "zero_points_are_not_clipped"),
    ],
)
def test_inputs_that_no_kernel_takes_are_refused(
    weights: dict[str, Any], activations: dict[str, Any], code: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        resolve_policy(Policy.model_validate({"weights": weights, "activations": activations}))
    assert caught.value.code == code
    assert caught.value.pointer.startswith("/activations/")


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (_INT4_GROUPS, _INT4_GROUPS),
        (_INT4_GROUPS | {"group_size": 32}, {"format": "int8", "granularity": "group", "group_size": 32}),
        ({"format": "int8"}, {"format": "int8", "symmetric": False}),
    ],
)
def test_inputs_that_kernels_take_in_groups_or_with_a_zero_point(
    weights: dict[str, Any], activations: dict[str, Any]
) -> None:
    found = resolve_policy(Policy.model_validate({"weights": weights, "activations": activations}))
    assert found.activations.model_dump(mode="json", exclude_unset=True).items() >= activations.items()


@pytest.mark.parametrize(
    ("weights", "activations", "pointer", "code"),
    [
        ({"format": "int8"}, {"format": "none"}, "/weights/symmetric", "no_kernel_for_zero_points"),
        ({"granularity": "tensor"}, {"format": "none"}, "/weights/symmetric", "no_kernel_for_zero_points"),
        ({"format": "nvfp4"}, {"format": "none"}, "/weights/symmetric", "no_kernel_for_zero_points"),
        ({}, {"format": "int8"}, "/activations/format", "zero_points_need_float_inputs"),
    ],
)
def test_zero_points_of_weights_that_no_kernel_takes_are_refused(
    weights: dict[str, Any], activations: dict[str, Any], pointer: str, code: str
) -> None:
    fields = {"weights": {"symmetric": False} | weights, "activations": activations}
    with pytest.raises(PolicyError) as caught:
        resolve_policy(Policy.model_validate(fields))
    assert (caught.value.pointer, caught.value.code) == (pointer, code)
    assert resolve_policy(Policy.model_validate({"preset": "w4a16", "weights": {"symmetric": False}}))
