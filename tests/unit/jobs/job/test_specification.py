"""What a request may not ask for, of a model that is only measured and of a universal checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.job.specification import checked_request
from jobs.kit.errors import InvalidPolicy, RefusedJob
from jobs.settings import Settings
from quant_engine.policy import PRESETS, JobRequest


def resolve(tmp_path: Path, policy: dict[str, Any], **fields: Any) -> JobRequest:
    body = {"model": {"id": "org/model"}, "policy": policy} | fields
    return checked_request(JobRequest.model_validate(body), Settings(data_dir=tmp_path))


@pytest.mark.parametrize("profile", ["rotated", "universal"])
def test_a_measurement_is_resolved_like_any_preset(profile: str, tmp_path: Path) -> None:
    specification = resolve(tmp_path, {"preset": "evaluate"}, output={"profile": profile})
    assert specification.policy == PRESETS["evaluate"].policy
    assert specification.evaluation.perplexity is not None
    assert specification.evaluation.perplexity.dataset == "pydoc"


def test_a_measurement_has_nothing_to_publish(tmp_path: Path) -> None:
    hub = {"hub": {"repo": "me/model"}}
    with pytest.raises(InvalidPolicy) as refused:
        resolve(tmp_path, {"task": "evaluate"}, output=hub)
    (error,) = refused.value.errors
    assert (error.pointer, error.code) == ("/output/hub", "nothing_to_publish")
    assert resolve(tmp_path, {"preset": "w8a8"}, output=hub).output.hub is not None


def test_a_measurement_that_would_quantize_is_refused_at_its_field(tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy) as refused:
        resolve(tmp_path, {"preset": "evaluate", "weights": {"format": "int8"}})
    (error,) = refused.value.errors
    assert (error.pointer, error.code) == ("/policy/weights", "nothing_is_changed")


def test_a_policy_that_does_not_keep_to_the_profile_is_refused_at_the_profile(tmp_path: Path) -> None:
    universal = {"profile": "universal"}
    with pytest.raises(InvalidPolicy) as refused:
        resolve(tmp_path, {"preset": "mxfp4"}, output=universal)
    (error,) = refused.value.errors
    assert (error.pointer, error.code) == ("/output/profile", "not_universal")
    assert "transform.kind" in error.detail
    assert "policy.online to 'none'" in error.detail
    assert resolve(tmp_path, {"preset": "mxfp4", "online": "none"}, output=universal).output.profile == "universal"
    assert resolve(tmp_path, {"preset": "mxfp4"}).output.profile == "rotated"


@pytest.mark.parametrize(
    ("policy", "code"), [({"preset": "quarot-w4a4"}, "not_for_gguf"), ({"task": "evaluate"}, "nothing_to_convert")]
)
def test_a_policy_without_diagonals_of_the_original_has_no_gguf_source(
    policy: dict[str, Any], code: str, tmp_path: Path
) -> None:
    also = {"also": ["gguf-source"]}
    with pytest.raises(InvalidPolicy) as refused:
        resolve(tmp_path, policy, output=also)
    (error,) = refused.value.errors
    assert (error.pointer, error.code) == ("/output/also", code)
    assert "leave 'gguf-source' out" in error.detail.replace("Leave", "leave")
    assert resolve(tmp_path, {"preset": "best-w4a4"}, output=also).output.also == ("gguf-source",)


@pytest.mark.parametrize("beside", [(), ("config.json", "model.safetensors")])
def test_an_adapter_is_refused_before_a_job_exists(beside: tuple[str, ...], tmp_path: Path) -> None:
    directory = tmp_path / "models" / "tuned"
    directory.mkdir(parents=True)
    for name in ("adapter_model.safetensors", *beside):
        (directory / name).touch()
    content = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (directory / "adapter_config.json").write_text(json.dumps(content))
    body = {"model": {"source": "local", "id": "tuned"}, "policy": {"preset": "w8a8"}}
    with pytest.raises(RefusedJob, match="owner/base") as refused:
        checked_request(JobRequest.model_validate(body), Settings(data_dir=tmp_path))
    (error,) = refused.value.errors
    assert (error.pointer, error.code, refused.value.status) == ("/model/id", "adapter_not_merged", 422)
    assert "Merge it first" in (refused.value.hint or "")
