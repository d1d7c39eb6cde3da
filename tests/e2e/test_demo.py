"""``quantry demo`` on the real model, with less of everything."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.serving import eventually, gone

pytestmark = [pytest.mark.slow, pytest.mark.model]


def demo(data_dir: Path, models_dir: Path, *options: str) -> "subprocess.Popen[str]":
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")},
        "QUANTRY_DATA_DIR": str(data_dir),
        "QUANTRY_MODELS_DIR": str(models_dir),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "quantry", "demo", *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_demo_shows_everything_and_stops_cleanly(server_data_dir: Path, demo_models_dir: Path) -> None:
    with demo(server_data_dir, demo_models_dir, "--samples=8", "--steps=3", "--perplexity-tokens=512") as running:
        assert running.stdout is not None
        output = running.stdout.read()
        assert running.wait(60) == 0, output
    for pattern in (
        r"Service: http://127\.0\.0\.1:\d+ ",
        r"Job: job_\w+, trainable-smoothrot-w4a4 on local:smollm2-135m, calibrated on 8 × 128 tokens of pydoc",
        r"train: succeeded in [\d.]+ s",
        r"^ *\S? ?28 +down_proj +smooth rotation +\w+",
        r"mean error, selected layers +[\d.]+ +[\d.]+ +-[\d.]+%",
        r"mean error, all layers +[\d.]+ +[\d.]+ +-[\d.]+%",
        r"perplexity of the model +[\d.]+ +[\d.]+ +× ",
        r"Sample: The capital of France is \S+",
        r"The service has stopped\.",
    ):
        assert re.search(pattern, output, re.M), f"{pattern}\n{output}"
    checkpoint = re.search(r"^Checkpoint: (.+)$", output, re.M)
    assert checkpoint is not None
    assert (Path(checkpoint[1]) / "model.safetensors").is_file()


def test_an_interrupted_demo_leaves_nothing_running(server_data_dir: Path, demo_models_dir: Path) -> None:
    with demo(server_data_dir, demo_models_dir) as running:
        assert running.stdout is not None
        seen = []
        for line in running.stdout:
            seen.append(line)
            if "load: succeeded" in line:
                break
        family = psutil.Process(running.pid).children(recursive=True)
        assert len(family) > 5, seen
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(90) == 130
        assert "everything the demo started has been stopped" in rest
        assert eventually(lambda: gone(family), 10)
