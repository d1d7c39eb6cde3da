"""The environment with vLLM, the checkpoints, and the process that compares them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from quant_engine.checkpoint import serving_check
from quant_engine.checkpoint.serving_gate import bounds_of
from serving.tests.cases import CASES

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 590


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Return the Python of the environment with vLLM. Without it the tests fail: they are asked for by name."""
    path = Path(os.environ.get("QUANTRY_VLLM_PYTHON", _ROOT / ".venv-serving" / "bin" / "python")).absolute()
    assert path.exists(), "There is no environment with vLLM. Run make serving."
    return path


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """Return SmolLM2-135M-Instruct as the demo prepares it."""
    models = Path(os.environ.get("QUANTRY_MODELS_DIR") or _ROOT / "var" / "models").absolute()
    command = [sys.executable, "-m", "worker.prepare_demo_model", f"--models-dir={models}"]
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, cwd=_ROOT)
    return models / "smollm2-135m"


class Checkpoints:
    """What :mod:`serving.tests.make_checkpoints` leaves in ``directory``, while it works."""

    def __init__(self, process: "subprocess.Popen[bytes]", directory: Path) -> None:
        self._process = process
        self._directory = directory

    def __getitem__(self, name: str) -> Path:
        """Return the directory of a case, as soon as it is there."""
        found = self._directory / name
        while not found.exists():
            status = self._process.poll()
            assert status is None or found.exists(), f"{name} was not made: the process ended with {status}."
            time.sleep(0.2)
        return found


@pytest.fixture(scope="session")
def checkpoints(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoints]:
    """Return the checkpoints, which another process makes meanwhile."""
    kept = os.environ.get("QUANTRY_SERVING_CHECKPOINTS")
    directory = Path(kept) if kept else tmp_path_factory.mktemp("checkpoints")
    command = [sys.executable, "-m", "serving.tests.make_checkpoints", str(model_dir), str(directory)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    process = subprocess.Popen(command, cwd=_ROOT, env=environment)
    yield Checkpoints(process, directory)
    process.terminate()
    process.wait()


class Vllm:
    """A process that compares checkpoints."""

    def __init__(self, python: Path) -> None:
        script = Path(__file__).with_name("vllm_server.py")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.figures: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [str(python), "-P", str(script), serving_check.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )

    def compare(
        self, name: str, checkpoint: Path, reference: Path, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Serve ``checkpoint`` as the case ``name`` is served, and return what was found."""
        case = CASES[name]
        asked = dict(environment or {}) | ({"QUANTRY_VLLM_REFERENCE": "1"} if case.reference else {})
        request = {
            "checkpoint": str(checkpoint),
            "reference": str(reference),
            "dtype": case.dtype,
            "bounds": vars(bounds_of(case.rounding, case.dtype)),
            "environment": asked,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"vLLM's process ended with {self._process.wait()}."
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="session")
def vllm(vllm_python: Path) -> Iterator[Vllm]:
    """Return vLLM; at the end the figures of all cases are in ``var/serving/figures.json``."""
    server = Vllm(vllm_python)
    yield server
    server.close()
    path = _ROOT / "var" / "serving" / "figures.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(server.figures, indent=2) + "\n", encoding="utf-8")
