"""Whole jobs on a tiny model through the real runner and the real engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from jobs.job.documents import CalibrationView, EvaluationView, Report, Summary
from jobs.job.views import TYPED_EVENTS, JobView
from jobs.kit.documents import JobProblemView
from jobs.kit.errors import RefusedJob
from jobs.kit.views import View
from jobs.settings import Settings
from quant_engine.policy import Limits, Output, Policy
from tests.integration.worker.conftest import TENANT, Office
from tests.small_disk import mounted_disk
from tests.stages import STAGES
from tests.tiny_models import write_tiny_model
from worker.outcomes import Outcome
from worker.subprocesses.environment import RUNNER

SMALL: dict[str, Any] = {
    "policy": {
        "preset": "trainable-smoothrot-w4a4",
        "search": {"alpha": [0.5], "q": [1.0], "layers": {"critical": 1, "normal": 1}},
        "training": {"steps": 20, "warmup": 2, "patience": 20},
        "tuning": {"steps": 2},
    },
    "calibration": {"dataset": "pydoc", "samples": 8, "sequence_length": 32},
    "evaluation": {"perplexity": {"dataset": "pydoc", "tokens": 256, "sequence_length": 32}},
}
EVERYTHING: dict[str, Any] = SMALL | {"output": {"also": ["gguf-source"]}}
SECONDS = 240.0
LAYERS = 3


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The machine computes while it beats: a longer lease, so that only what a test means to happen happens."""
    return settings.model_copy(update={"lease_seconds": 15.0})


@pytest.fixture
def tiny(settings: Settings) -> Path:
    """A tiny LLaMA among the operator's models."""
    return write_tiny_model(settings.models_dir / "tiny", layers=LAYERS)


def published(office: Office, job_id: str) -> dict[str, str]:
    """What a job published, by path: the digests of its checkpoint, and of what was measured on it."""
    artifacts = office.queries.list_artifacts(job_id, tenant=TENANT).data
    return {artifact.path: artifact.sha256 for artifact in artifacts}


def assert_described(document: object, model: type[BaseModel]) -> None:
    """The stored JSON is exactly what the API's document says of it."""
    assert model.model_validate(document).model_dump(mode="json", exclude_unset=True) == document


def assert_all_described(office: Office, job: JobView) -> None:
    """Everything that a finished job shows has the type that the API's document gives it."""
    assert_described(job.policy, Policy)
    assert_described(job.calibration, CalibrationView)
    assert_described(job.evaluation, EvaluationView)
    assert_described(job.output, Output)
    assert_described(job.limits, Limits)
    assert_described(job.summary, Summary)
    assert_described(office.queries.get_report(job.id, tenant=TENANT), Report)
    types: dict[str, type[View]] = {str(each.model_fields["type"].annotation): each for each in TYPED_EVENTS}
    for event in office.events(job.id):
        shown = event.model_dump(mode="json")
        (kind,) = (each for name, each in types.items() if f"'{event.type}'" in name)
        assert_described(shown["data"], kind.model_fields["data"].annotation or View)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_job_ends_with_a_verified_checkpoint(office: Office) -> None:
    office.start_worker("worker.app")
    job_id = office.submit("tiny", **EVERYTHING)
    job = office.wait(job_id, "succeeded", "failed", seconds=SECONDS)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.summary is not None
    assert job.summary["perplexity"]["quantized"] > 1.0
    assert [(stage.name, stage.status) for stage in job.stages] == [(name, "succeeded") for name in STAGES]
    layers = office.queries.list_layers(job_id, tenant=TENANT).data
    assert [layer.name for layer in layers] == [f"model.layers.{block}.mlp.down_proj" for block in range(LAYERS)]
    events = office.events(job_id)
    completed = {event.data["name"] for event in events if event.type == "layer.completed"}
    assert completed == {layer.name for layer in layers}
    fractions = [event.data["fraction"] for event in events if event.type == "progress"]
    assert fractions == sorted(fractions)
    files = {"checkpoint/config.json", "checkpoint/model.safetensors", "gguf-source/imatrix.gguf", "report.json"}
    assert job.summary["gguf_source"]["fused_sites"] == LAYERS
    assert files <= published(office, job_id).keys()
    assert not office.work(job_id).exists()
    assert_all_described(office, job)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-4000]), "invalid_model"),
        (lambda weights: weights.unlink(), "model_not_found"),
    ],
    ids=["truncated", "missing"],
)
def test_a_corrupt_checkpoint_is_the_users_to_mend(
    office: Office, tiny: Path, spoil: Callable[[Path], object], code: str
) -> None:
    # After the submit, which would refuse it.
    job_id = office.submit("tiny", **SMALL)
    spoil(tiny / "model.safetensors")
    assert office.supervisor(runner=RUNNER).run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == (code, "user")
    assert job.error["hint"]
    assert_described(job.error, JobProblemView)
    assert not list(office.work(job_id).glob("*/output"))


@pytest.mark.usefixtures("tiny")
def test_a_policy_that_matches_no_layer(office: Office) -> None:
    with pytest.raises(RefusedJob, match="q_proj, k_proj, v_proj") as refused:
        office.submit("tiny", **{**SMALL, "policy": {"preset": "rtn-w4a4", "targets": ["qkv_proj"]}})
    assert [(each.pointer, each.code) for each in refused.value.errors] == [("/policy/targets/0", "no_match")]


@pytest.fixture
def small_disk(settings: Settings) -> Iterator[None]:
    """The work directory on a disk of its own that holds the first stages and no more."""
    with mounted_disk(settings.work_dir, "300k"):
        yield


@pytest.mark.usefixtures("tiny", "small_disk")
def test_a_disk_that_fills_up_under_the_engine(office: Office) -> None:
    job_id = office.submit("tiny", **SMALL)
    assert office.supervisor(runner=RUNNER).run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"], job.attempt) == ("disk_full", "capacity", 1)
    assert not office.work(job_id).exists()
