"""A real API on a real port, over the real database; a worker's hands to move jobs along."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from api.main import create_app
from jobs.artifacts import ArtifactStore, open_store
from jobs.job.lease import Claim, JobLeases, Manifest
from jobs.repository.database import Database
from jobs.settings import Settings
from tests.api_server import serving
from tests.sound_model import write_sound_model

FILES = {
    "checkpoint/config.json": b'{"model_type": "llama"}',
    "checkpoint/model.safetensors": bytes(range(256)) * 3000,
    "checkpoint/empty.txt": b"",
    "report.json": b"{}",
}
BODY: dict[str, Any] = {"model": {"source": "local", "id": "tiny"}, "policy": {"preset": "rtn-w4a4"}}


def layer_row(block: int, error: float) -> dict[str, Any]:
    """One layer row of a manifest."""
    return {
        "name": f"model.layers.{block}.mlp.down_proj",
        "block": block,
        "role": "feed_forward_inner",
        "scheme": "w4a4",
        "transform": "smooth_rotation",
        "alpha": 0.5,
        "statistic": "l2",
        "error": error,
        "error_normalized": error / 10,
        "sqnr_db": 20.0,
        "cosine": 0.99,
        "baseline_error": error * 1.25,
        "gain_percent": 20.0,
        "rtn_error": float("nan"),
        "input_absmax": 3.0,
        "input_kurtosis": None,
        "parameters": 1000,
        "bytes": 500,
        "selected": "critical" if block == 0 else None,
    }


@dataclass(frozen=True)
class Hands:
    """What a worker does, without one."""

    leases: JobLeases
    store: ArtifactStore
    work_dir: Path

    def claim(self) -> Claim:
        """The oldest queued job."""
        claim = self.leases.claim("test-worker")
        assert claim is not None
        return claim

    def publish(self, claim: Claim) -> None:
        """Finish a claimed job with three layers and a few files."""
        output = self.work_dir / claim.job_id
        for name, content in FILES.items():
            path = output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        manifest = Manifest(
            summary={"full_mean_error": 2.0},
            report={"layers": 3, "perplexity": {"original": 10.0, "quantized": 11.0}},
            layers=[layer_row(block, error) for block, error in enumerate((1.0, 3.0, 2.0))],
            artifacts=self.store.put(output),
        )
        assert self.leases.publish(claim, manifest)


@pytest.fixture
def settings(tmp_path: Path, database: Database) -> Settings:
    """Of an installation with one local model and no broker."""
    write_sound_model(tmp_path / "models" / "tiny")
    dataset = tmp_path / "datasets" / "tales"
    dataset.mkdir(parents=True)
    # More than is counted at submit.
    (dataset / "train.txt").write_text("Once upon a time. " * 30_000)
    return Settings(
        data_dir=tmp_path,
        datasets_dir=tmp_path / "datasets",
        database_url=SecretStr(database.engine.url.render_as_string(hide_password=False)),
        broker_url=None,
        max_body_bytes=100_000,
    )


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """The running API."""
    with serving(create_app(settings)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def hands(database: Database, settings: Settings) -> Hands:
    """A worker's hands."""
    return Hands(JobLeases(database, settings), open_store(settings), settings.work_dir)


@pytest.fixture
def submit(client: httpx.Client) -> Callable[..., dict[str, Any]]:
    """Submits a job and returns it."""

    def submit(**fields: Any) -> dict[str, Any]:
        response = client.post("/v1/jobs", json={**BODY, **fields})
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    return submit


@pytest.fixture
def finished(submit: Callable[..., dict[str, Any]], hands: Hands) -> str:
    """The id of a job that has succeeded."""
    job_id: str = submit()["id"]
    hands.publish(hands.claim())
    return job_id
