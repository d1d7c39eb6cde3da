"""Null means what the request says it means, and nothing where a generated client wrote it for a left-out field."""

from typing import Any

import pytest
from pydantic import ValidationError

from quant_engine.policy import PRESETS, Evaluation, JobRequest, Policy, resolve_policy

# What a plain dump of a generated model has beside the preset.
LEFT_OUT: dict[str, Any] = dict.fromkeys(name for name in Policy.model_fields if name != "preset")


@pytest.mark.parametrize("name", PRESETS)
def test_nulls_for_all_that_was_left_out_change_no_preset(name: str) -> None:
    assert resolve_policy(Policy.model_validate({**LEFT_OUT, "preset": name})) == PRESETS[name].policy


@pytest.mark.parametrize(
    ("preset", "field"),
    [
        ("spinquant-w4a4", "residual"),
        ("trainable-smoothrot-w4a4", "search"),
        ("best-w4a4", "training"),
        ("adaptive-w4a4", "selection"),
    ],
)
def test_none_can_be_said_in_every_dialect(preset: str, field: str) -> None:
    others = {} if field != "residual" else {"training": {"kind": "none"}}
    for policy in (
        {"preset": preset, **others, field: None},
        {"preset": preset, **others, field: {"kind": "none"}},
        {**LEFT_OUT, "preset": preset, **others, field: {"kind": "none"}},
    ):
        assert getattr(resolve_policy(Policy.model_validate(policy)), field) is None
        assert getattr(PRESETS[preset].policy, field) is not None


def test_a_whole_policy_keeps_its_nulls() -> None:
    """What a job shows can be sent again."""
    resolved = resolve_policy(Policy.model_validate({"preset": "best-w4a4", "training": None}))
    again = Policy.model_validate(resolved.model_dump(mode="json"))
    assert resolve_policy(again) == resolved


def test_objects_inside_are_read_like_the_policy() -> None:
    """All that can not be null is given here, so only the policy around it tells what the null is."""
    transform = {"kind": "wush", "alpha": 0.4, "statistic": {"kind": "l2"}, "damping": 0.01}
    for around, size in (({}, None), (LEFT_OUT, 64)):
        policy = {**around, "preset": "wush-w4a4", "transform": {**transform, "block_size": None}}
        assert resolve_policy(Policy.model_validate(policy)).transform.block_size == size


def test_a_kind_of_null_is_a_kind_that_was_left_out() -> None:
    fields = {"kind": None, "steps": 7, "warmup": None, "batch_tokens": None}
    training = resolve_policy(
        Policy.model_validate({"preset": "trainable-smoothrot-w4a4", "training": fields})
    ).training
    own = PRESETS["trainable-smoothrot-w4a4"].policy.training
    assert own is not None
    assert training == own.model_copy(update={"steps": 7})


def test_groups_of_a_format_are_added_beside_nulls() -> None:
    fields = {"format": "nvfp4", "granularity": None, "group_size": None}
    weights = Policy.model_validate({"weights": fields}).weights
    assert (weights.granularity, weights.group_size) == ("group", 16)


def test_null_skips_the_perplexity_and_an_absent_evaluation_does_not() -> None:
    body = {"model": {"id": "m"}, "policy": {"preset": "w4a16"}, "calibration": None, "evaluation": None}
    assert JobRequest.model_validate(body).evaluation == Evaluation()
    assert JobRequest.model_validate({**body, "evaluation": {"perplexity": None}}).evaluation.perplexity is None


@pytest.mark.parametrize(
    "policy",
    [
        {**LEFT_OUT, "wieghts": None},
        {**LEFT_OUT, "transform": {"kind": None, "alhpa": None}},
        {**LEFT_OUT, "overrides": [{"match": None}]},
        {**LEFT_OUT, "targets": ["q_proj", None]},
        {"search": {"kind": "none", "alpha": [0.5]}},
    ],
)
def test_what_was_refused_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(policy)
