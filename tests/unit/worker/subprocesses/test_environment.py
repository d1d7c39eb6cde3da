"""What subprocesses may see, and what the machine offers them."""

from pathlib import Path

import pytest

from worker.devices import cores, devices, visible_gpus
from worker.subprocesses.environment import download_environment, runner_environment

SECRETS = {
    "QUANTRY_DATABASE_URL": "postgresql://quantry:hunter2@db/quantry",
    "QUANTRY_BROKER_URL": "redis://:hunter2@broker/0",
    "QUANTRY_API_KEY": "qk_hunter2",
    "QUANTRY_SECRET_KEY": "hunter2",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "HF_TOKEN": "hf_hunter2",
    "HF_TOKEN_PATH": "/hunter2",
    "PGPASSWORD": "hunter2",
}


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")


@pytest.mark.usefixtures("_secrets")
def test_the_runner_holds_no_secret_and_is_offline(tmp_path: Path) -> None:
    environment = runner_environment(tmp_path, threads=3, gpu=None)
    assert not any("hunter2" in value for value in environment.values())
    assert not {"HF_ENDPOINT", "HTTPS_PROXY"} & environment.keys()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == str(tmp_path)
    assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == ("3", "")


@pytest.mark.usefixtures("_secrets")
def test_the_download_holds_no_secret_either(tmp_path: Path) -> None:
    environment = download_environment(tmp_path)
    assert not any("hunter2" in value for value in environment.values())
    assert environment["HF_ENDPOINT"] == "http://127.0.0.1:1"


def test_each_visible_gpu_runs_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == ("0", "1", "10")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-5f")
    assert visible_gpus(tmp_path) == ("1", "GPU-5f")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(tmp_path) == ()
    assert visible_gpus(tmp_path / "no-devices") == ()


def test_without_a_gpu_the_cpu_runs_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert devices("auto") == devices("cpu")
    (only,) = devices("cpu")
    assert (only.name, only.gpu, only.threads) == ("cpu", None, 2)


@pytest.mark.parametrize(("text", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10_000)])
def test_a_container_quota_bounds_the_cores(tmp_path: Path, text: str, most: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert 1 <= cores(quota) <= most
    assert cores(tmp_path / "missing") >= 1
