"""What a process loads when it imports a room."""

import subprocess
import sys

import pytest

_HEAVY = ("torch", "transformers", "safetensors", "pyarrow", "quant_engine.pipeline", "quant_engine.models")


@pytest.mark.parametrize("module", ["api.main", "jobs.job.commands", "jobs.job.queries", "quant_engine.policy"])
def test_it_loads_no_tensors(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in {_HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert loaded.stdout.split() == []
