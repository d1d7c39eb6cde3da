"""A whole job over HTTP on a running service: faults on the way, and what comes out of it at the end."""

import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from quantry import Event, Quantry, QuantryError
from tests.serving import Serving, eventually, serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow

LAYERS = 4
REQUEST: dict[str, Any] = {
    "model": {"source": "local", "id": "tiny"},
    "policy": {"preset": "trainable-smoothrot-w4a4", "training": {"steps": 300, "patience": 300}},
    "calibration": {"samples": 16, "sequence_length": 32},
    "evaluation": {"perplexity": {"tokens": 1024, "sequence_length": 128}},
}
ROW = {
    *("name", "block", "role", "scheme", "transform", "alpha", "statistic", "error", "error_normalized", "sqnr_db"),
    *("cosine", "baseline_error", "gain_percent", "rtn_error", "input_absmax", "input_kurtosis", "parameters", "bytes"),
    "selected",
}


@pytest.fixture(scope="module")
def service() -> Iterator[Serving]:
    # Not under tmp_path: see server_data_dir.
    with TemporaryDirectory(prefix="quantry-test-", ignore_cleanup_errors=True) as directory:
        data_dir = Path(directory)
        write_tiny_model(data_dir / "models" / "tiny", layers=LAYERS, outliers=True)
        broken = write_tiny_model(data_dir / "models" / "broken", layers=1) / "model.safetensors"
        broken.write_bytes(broken.read_bytes()[:1000])
        # Only its values are wrong, and only a worker reads those.
        unsound = write_tiny_model(data_dir / "models" / "unsound", layers=1) / "model.safetensors"
        weights = load_file(unsound)
        weights["model.norm.weight"][0] = math.nan
        save_file(weights, unsound, metadata={"format": "pt"})
        with serving(data_dir, "--no-demo-model") as started:
            started.url()
            yield started


@pytest.fixture
def client(service: Serving) -> Iterator[Quantry]:
    with Quantry(service.url()) as made:
        yield made


def runner_of(service: Serving) -> psutil.Process:
    (runner,) = [process for process in service.family() if "worker.runner" in process.cmdline()]
    return runner


def kill_on_the_way(service: Serving, events: Iterator[Event]) -> tuple[list[Event], float]:
    """All events of the job, whose runner and then whose API are killed; and the seconds until it ran again."""
    seen: list[Event] = []
    killed_at, recovered_after, api_killed = 0.0, 0.0, False
    for event in events:
        seen.append(event)
        if not killed_at and event.data.get("stage") == "train" and event.data.get("done"):
            runner_of(service).kill()
            killed_at = time.monotonic()
        elif killed_at and not recovered_after and event.type == "job.status" and event.data["status"] == "running":
            recovered_after = time.monotonic() - killed_at
        elif recovered_after and not api_killed and event.type == "stage.status":
            os.kill(service.child("api").pid, signal.SIGKILL)
            api_killed = True
    assert api_killed, seen
    return seen, recovered_after


def weights_digest(client: Quantry, job_id: str) -> str:
    (weights,) = [each for each in client.artifacts(job_id) if each.path == "checkpoint/model.safetensors"]
    return weights.sha256


def test_a_job_survives_kills_and_its_checkpoint_loads_anywhere(
    service: Serving, client: Quantry, tmp_path: Path
) -> None:
    job = client.submit(REQUEST)
    seen, recovered_after = kill_on_the_way(service, client.events(job.id))
    assert 0 < recovered_after < 60
    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].type == "done"

    done = client.wait(job.id, timeout_seconds=10)
    assert (done.status, done.attempt, done.error) == ("succeeded", 2, None)
    assert done.progress.fraction == 1.0
    assert any(stage.status == "reused" for stage in done.stages)
    assert done.summary is not None
    assert done.summary["selected_mean_error"] <= done.summary["baseline_selected_mean_error"]
    assert done.summary["perplexity"].keys() >= {"original", "quantized"}
    assert done.summary["bytes"]["quantized"] < done.summary["bytes"]["original"]

    rows = client.layers(job.id, sort="-error")
    assert len(rows) == LAYERS
    assert all(row.model_dump().keys() >= ROW for row in rows)
    errors = [row.error for row in rows if row.error is not None]
    assert errors == sorted(errors, reverse=True)
    assert client.layers_csv(job.id).count("\n") == LAYERS + 1
    assert client.report(job.id)

    paths = client.download(job.id, tmp_path / "files")
    assert {path.relative_to(tmp_path / "files").as_posix() for path in paths} >= {
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "report.json",
    }
    archive = client.archive(job.id, tmp_path / "checkpoint.tar")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (weights,) = (tmp_path / "unpacked").rglob("model.safetensors")
    assert weights.read_bytes() == (tmp_path / "files" / "checkpoint" / "model.safetensors").read_bytes()
    spoken = subprocess.run(
        [sys.executable, "-m", "worker.generate_sample", str(weights.parent), "--prompt", "The", "--tokens", "5"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert spoken.stdout.startswith("The")

    undisturbed = client.submit(REQUEST)
    assert client.wait(undisturbed.id, timeout_seconds=180).attempt == 1
    assert weights_digest(client, job.id) == weights_digest(client, undisturbed.id)

    client.delete(job.id)
    with pytest.raises(QuantryError, match="job_not_found"):
        client.get(job.id)
    assert client.artifacts(undisturbed.id), "equal files are shared, and stay"


def test_a_job_that_can_not_be_done_says_why_and_what_helps(client: Quantry) -> None:
    unsound = {"model": {"source": "local", "id": "unsound"}}
    job = client.wait(client.submit({**REQUEST, **unsound}).id, timeout_seconds=120)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error["code"], job.error["category"]) == ("numerical_instability", "user")
    assert job.error["detail"]
    assert job.error["hint"]
    assert job.attempt == 1


def test_a_cancelled_job_leaves_no_process(service: Serving, client: Quantry) -> None:
    training = {"steps": 100_000, "patience": 100_000}  # it must still be training when it is cancelled
    job = client.submit({**REQUEST, "policy": {"preset": "trainable-smoothrot-w4a4", "training": training}})
    assert eventually(lambda: client.get(job.id).progress.stage == "train", 60)
    runner = runner_of(service)
    client.cancel(job.id)
    assert eventually(lambda: not runner.is_running(), 15)
    assert client.wait(job.id, timeout_seconds=15).status == "cancelled"


BAD_QUANTILE = {"transform": {"statistic": {"kind": "quantile", "q": 0.4}}}


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"model": {"source": "local", "id": "missing"}}, "model_not_found", "/model/id"),
        ({"model": {"source": "local", "id": "broken"}}, "invalid_model", "/model/id"),
        ({"policy": {"preset": "smoothrot-w4a4", "targets": ["qkv_proj"]}}, "no_match", "/policy/targets/0"),
        ({"model": {"source": "local", "id": "../tiny"}}, None, "/model/id"),
        ({"policy": {"preset": "nothing-w4a4"}}, "unknown_preset", "/policy/preset"),
        ({"policy": {"unheard_of": 1}}, None, "/policy/unheard_of"),
        (
            {"policy": {"transform": {"statistic": {"kind": "quantile", "q": 0.4}}}},
            None,
            "/policy/transform/statistic/q",
        ),
    ],
)
def test_a_wrong_request_names_its_place(
    client: Quantry, change: dict[str, Any], code: str | None, pointer: str
) -> None:
    with pytest.raises(QuantryError) as caught:
        client.submit({**REQUEST, **change})
    assert caught.value.status == 422
    assert pointer in {each.pointer for each in caught.value.errors}
    assert code in (None, caught.value.code)
