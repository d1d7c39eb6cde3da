"""Whole runs that were killed end with the same bytes, behind a learned rotation too.

What a kill costs inside a stage is in ``test_resume_units``.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from quant_engine.policy import Policy
from tests.integration.quant_engine.runs import file_hashes, policy_of, run_until, small
from tests.tiny_models import write_tiny_model

SMALL = small()
_POLICIES: dict[str, Policy] = {
    "best-w4a4": policy_of(preset="best-w4a4", training={"kind": "block", "steps": 3, "batch_samples": 2}),
    "spinquant-w4a4": policy_of(preset="spinquant-w4a4", training={"kind": "rotation", "steps": 2}),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3", layers=3, outliers=True)


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The files of a run without a kill, by preset."""

    @cache
    def files(preset: str) -> dict[str, str]:
        out = tmp_path_factory.mktemp("undisturbed")
        run_until("verify", model_dir, _POLICIES[preset], out, **SMALL)
        return _stages(out)

    return files


def _stages(out: Path) -> dict[str, str]:
    """What every stage left; a stage under way is not there."""
    return {name: digest for name, digest in file_hashes(out / "work").items() if ".partial/" not in name}


@pytest.mark.parametrize(
    ("preset", "stage", "done"),
    [
        ("best-w4a4", "train", 2),  # the blocks' inputs are the original's here
        ("spinquant-w4a4", "calibrate", 0),  # everything after the learned rotation, in a run that reads it
        ("spinquant-w4a4", "quantize", 2),
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(
    preset: str, stage: str, done: int, model_dir: Path, undisturbed: Any, tmp_path: Path
) -> None:
    run_until(stage, model_dir, _POLICIES[preset], tmp_path, done, **SMALL)
    assert not (tmp_path / "work" / stage).exists()
    run_until("verify", model_dir, _POLICIES[preset], tmp_path, **SMALL)
    assert _stages(tmp_path) == undisturbed(preset)


def test_a_finished_rotation_is_read_not_learned_again(model_dir: Path, tmp_path: Path) -> None:
    policy = _POLICIES["spinquant-w4a4"]
    run_until("select", model_dir, policy, tmp_path, **SMALL)
    rotation = tmp_path / "work" / "train" / "rotation.safetensors"
    written = rotation.stat().st_mtime_ns
    assert load_file(rotation)["r2"].shape == (3, 32, 32)
    observer = run_until("verify", model_dir, policy, tmp_path, **SMALL)
    assert rotation.stat().st_mtime_ns == written
    assert observer.finished(reused=True) == ["load", "train", "calibrate"]
