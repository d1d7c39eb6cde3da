"""The real model, where it is: ``QUANTRY_TEST_MODEL``, or what ``worker.prepare_demo_model`` left in ``var/models``."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M as dense safetensors; the test is skipped where there is none."""
    directory = Path(os.environ.get("QUANTRY_TEST_MODEL", "var/models/smollm2-135m"))
    if not (directory / "config.json").is_file():
        pytest.skip("no SmolLM2-135M here; set QUANTRY_TEST_MODEL to its directory")
    return directory
