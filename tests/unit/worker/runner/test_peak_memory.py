"""What a runner tells of its memory."""

import json
import subprocess
import sys

import pytest
import torch

from worker.telemetry.ports import MEMORY_METRICS

MEGABYTE = 1 << 20


def told(before: str) -> dict[str, float]:
    """What a process tells after ``before``."""
    program = (
        f"import json, sys; {before}; from worker.runner.peak_memory import peak_bytes; print(json.dumps(peak_bytes()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


def test_the_peak_stays_when_the_memory_is_given_back_and_is_the_processs_own() -> None:
    here = bytearray(300 * MEGABYTE)  # of the parent, which the child must not tell
    small = told("pass")
    large = told("x = bytearray(200 << 20); x[::4096] = bytes(len(x[::4096])); del x")
    assert len(here) > small["memory.cpu_peak_bytes"] > 5 * MEGABYTE
    assert 190 * MEGABYTE < large["memory.cpu_peak_bytes"] - small["memory.cpu_peak_bytes"] < 260 * MEGABYTE
    assert large.keys() <= MEMORY_METRICS.keys()


def test_torch_is_not_loaded_to_ask_it() -> None:
    program = (
        "import sys; from worker.runner.peak_memory import peak_bytes; peak_bytes(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_is_told() -> None:
    peaks = told("import torch; x = torch.empty(100 << 20, dtype=torch.uint8, device='cuda'); del x")
    assert peaks["memory.cuda_peak_bytes"] == 100 * MEGABYTE
