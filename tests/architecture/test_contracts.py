"""The import contracts of ``pyproject.toml``: imports that are planted in a copy of the source break them."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import ROOT, copy_source

_PACKAGES = ("api", "jobs", "quant_engine", "quantry", "worker")
_PLANTED = [
    ("jobs/kit/ids.py", "import jobs.job.lease", "jobs: job is the highest layer"),
    ("jobs/kit/ids.py", "def late() -> None:\n    import jobs.job.lease", "jobs: job is the highest layer"),
    ("worker/subprocesses/messages.py", "import worker.attempts.supervisor", "worker: the host is above"),
    ("quant_engine/grids/quantize.py", "import quant_engine.stages.stage", "No circular imports of files or folders"),
    ("quant_engine/interface/spec.py", "import torch", "Policy, interface, model files and preflight import no torch"),
    (
        "quant_engine/interface/spec.py",
        "import transformers",
        "Policy, interface, model files and preflight import no torch",
    ),
    ("quantry/results.py", "import jobs.settings", "The client imports no package of the server"),
    ("quantry/errors.py", "import boto3", "The client imports no package of the server"),
    ("api/log.py", "import worker.app", "api and worker never import each other"),
    ("jobs/gc.py", "import numpy", "Only the worker imports torch"),
    ("worker/jitter.py", "import tests.extending", "The server does not import the client"),
    ("worker/jitter.py", "import quantry.client", "The server does not import the client"),
]
"""A file, the import that is added to it, and the contract that the import breaks."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source without its history and its environment."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return copy_source(tmp_path)


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` on a copy."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)


def test_the_source_keeps_its_contracts(copy: Path) -> None:
    found = lint(copy)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(("name", "line", "contract"), _PLANTED)
def test_a_planted_import_breaks_its_contract(copy: Path, name: str, line: str, contract: str) -> None:
    source = copy / name
    source.write_text(f"{source.read_text()}\n{line}\n")

    found = lint(copy)

    assert found.returncode == 1
    verdicts = re.findall(r"(\S.*?) (KEPT|BROKEN)", re.sub(r"\s+", " ", found.stdout))
    assert any(contract in name for name, verdict in verdicts if verdict == "BROKEN"), found.stdout


@pytest.mark.parametrize("package", _PACKAGES)
def test_a_package_itself_imports_none_of_its_modules(package: str) -> None:
    """Every module imports its package first, so an import there is a circle that no contract sees."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [getattr(node, "module", None) or node.names[0].name for node in imported]
    assert not [module for module in modules if module.split(".")[0] in _PACKAGES]
