"""A request that only measures a model: its specification, and what it may not ask for."""

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InvalidPolicy
from jobs.settings import Settings
from jobs.specification import resolve_request
from quant_engine.policy import PRESETS, JobRequest


def resolve(tmp_path: Path, policy: dict[str, Any], **fields: Any) -> JobRequest:
    body = {"model": {"id": "org/model"}, "policy": policy} | fields
    return resolve_request(JobRequest.model_validate(body), Settings(data_dir=tmp_path))


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
