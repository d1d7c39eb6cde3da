"""The import contracts of ``pyproject.toml``: imports that are planted in a copy of the source break them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("api", "jobs", "quant_engine", "quantry", "worker")
_PLANTED = {
    "jobs/kit/ids.py": "import jobs.job.lease",
    "worker/subprocesses/messages.py": "import worker.attempts.supervisor",
    "quant_engine/grids/quantize.py": "import quant_engine.stages.stage",
    "quant_engine/interface/spec.py": "import torch",
    "quantry/results.py": "import jobs.settings",
    "api/log.py": "import worker.app",
}
_BROKEN = (
    "api and worker never import each other",
    "jobs: job is the highest layer",
    "worker: the host is above",
    "No circular imports of files or folders",
    "The policy and the interface import no torch",
    "The client imports no package of the server",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source without its history and its environment."""
    for package in _PACKAGES:
        shutil.copytree(_ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` on a copy."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)


def test_the_source_keeps_its_contracts(copy: Path) -> None:
    found = lint(copy)
    assert found.returncode == 0, found.stdout


def test_an_upward_import_breaks_its_contract(copy: Path) -> None:
    for name, line in _PLANTED.items():
        source = copy / name
        source.write_text(f"{source.read_text()}\n{line}\n")

    found = lint(copy)

    assert found.returncode == 1
    verdicts = re.findall(r"(\S.*?) (KEPT|BROKEN)", re.sub(r"\s+", " ", found.stdout))
    broken = [name for name, verdict in verdicts if verdict == "BROKEN"]
    for contract in _BROKEN:
        assert any(contract in name for name in broken), contract
