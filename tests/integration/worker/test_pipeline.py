"""Whole jobs on a tiny model through the real runner and the real engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import Settings
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
    },
    "calibration": {"dataset": "pydoc", "samples": 8, "sequence_length": 32},
    "evaluation": {"perplexity": {"dataset": "pydoc", "tokens": 256, "sequence_length": 32}},
}
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


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_job_ends_with_a_verified_checkpoint(office: Office) -> None:
    office.start_worker("worker.app")
    job_id = office.submit("tiny", **SMALL)
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
    assert {"checkpoint/config.json", "checkpoint/model.safetensors", "report.json"} <= published(office, job_id).keys()
    assert not office.work(job_id).exists()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-4000]), "unsafe_checkpoint"),
        (lambda weights: weights.unlink(), "model_not_found"),
    ],
    ids=["truncated", "missing"],
)
def test_a_corrupt_checkpoint_is_the_users_to_mend(
    office: Office, tiny: Path, spoil: Callable[[Path], object], code: str
) -> None:
    spoil(tiny / "model.safetensors")
    job_id = office.submit("tiny", **SMALL)
    assert office.supervisor(runner=RUNNER).run_next() is Outcome.FAILED
    job = office.job(job_id)
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == (code, "user")
    assert job.error["hint"]
    assert not list(office.work(job_id).glob("*/output"))


@pytest.mark.usefixtures("tiny")
def test_a_policy_that_matches_no_layer(office: Office) -> None:
    job_id = office.submit("tiny", **{**SMALL, "policy": {"preset": "rtn-w4a4", "targets": ["qkv_proj"]}})
    assert office.supervisor(runner=RUNNER).run_next() is Outcome.FAILED
    error = office.job(job_id).error
    assert error is not None
    assert error["code"] == "no_matching_layer"
    assert "/policy/targets/0" in error["detail"]
    assert "q_proj, k_proj, v_proj" in error["detail"]


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
