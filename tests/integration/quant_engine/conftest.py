"""The real model for the engine's own tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(demo_models_dir: Path) -> Path:
    """SmolLM2-135M as dense safetensors, made on first use."""
    return demo_models_dir / "smollm2-135m"
