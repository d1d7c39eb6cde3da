"""A run that has to make do with little memory: smaller batches, the same files to within rounding."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quant_engine.stages.evaluate import read_perplexity
from tests.integration.quant_engine.kills import POLICIES, SPEC, stage_files, watch
from tests.integration.quant_engine.runs import run_until
from tests.tiny_models import write_tiny_model

STAGES = ("calibrate", "train", "select", "quantize", "evaluate")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3", layers=3, outliers=True)


@pytest.fixture(scope="module")
def usual(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with as much memory as it likes."""
    out = tmp_path_factory.mktemp("usual")
    run_until("export", model_dir, POLICIES["blocks"], out, **SPEC)
    return out


def _tensors(out: Path, pattern: str) -> dict[str, Any]:
    paths = sorted((out / "work").glob(pattern))
    assert paths
    return {f"{path.name}:{name}": value for path in paths for name, value in load_file(path).items()}


def test_one_window_at_a_time_gives_the_same_records(
    model_dir: Path, usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = watch(monkeypatch)
    run_until("train", model_dir, POLICIES["blocks"], tmp_path, low_memory=True, **SPEC)
    assert set(work.batches) == {1}
    pattern = "calibrate/records/*.safetensors"
    expected = _tensors(usual, pattern)
    torch.testing.assert_close(_tensors(tmp_path, pattern), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["train", "quantize"])
def test_what_was_finished_with_more_memory_is_not_done_again(
    stage: str, model_dir: Path, usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages are reused, and a stage under way goes on behind its last block, in batches of one."""
    later = STAGES[STAGES.index(stage) :]
    shutil.copytree(usual / "work", tmp_path / "work", ignore=shutil.ignore_patterns(*later))
    run_until(stage, model_dir, POLICIES["blocks"], tmp_path, 1, **SPEC)
    work = watch(monkeypatch)
    observer = run_until(later[1], model_dir, POLICIES["blocks"], tmp_path, low_memory=True, **SPEC)
    assert observer.finished(reused=True) == ["load", *STAGES[: STAGES.index(stage)]]
    assert set(work.forwards) == {1, 2}
    assert set(work.batches) == {1}
    first = "block-00000.safetensors" if stage == "quantize" else "00000.curve.json"
    assert stage_files(tmp_path, stage)[first] == stage_files(usual, stage)[first]


def test_moments_are_summed_over_as_many_samples(model_dir: Path, usual: Path, tmp_path: Path) -> None:
    """GPTQ's grids hardly move: a cap on massive tokens that knew one sample only would move them."""
    shutil.copytree(usual / "work", tmp_path / "work", ignore=shutil.ignore_patterns(*STAGES[3:]))
    run_until("evaluate", model_dir, POLICIES["blocks"], tmp_path, low_memory=True, **SPEC)
    found, expected = (_tensors(out, "quantize/block-*.safetensors") for out in (tmp_path, usual))
    packed = [name for name in expected if name.endswith("weight_packed")]
    assert packed
    moved = sum(int((found[name] != expected[name]).sum()) for name in packed)
    assert moved <= 0.01 * sum(expected[name].numel() for name in packed)


def test_perplexity_is_the_same_to_rounding(model_dir: Path, usual: Path, tmp_path: Path) -> None:
    shutil.copytree(usual / "work", tmp_path / "work", ignore=shutil.ignore_patterns("evaluate"))
    run_until("export", model_dir, POLICIES["blocks"], tmp_path, low_memory=True, **SPEC)
    found, expected = (read_perplexity(out / "work" / "evaluate") for out in (tmp_path, usual))
    assert found.pop("compressed_tensors") is expected.pop("compressed_tensors") is None
    for name, result in expected.items():
        assert found[name]["predicted"] == result["predicted"]
        assert found[name]["mean_nll"] == pytest.approx(result["mean_nll"], rel=1e-5)
