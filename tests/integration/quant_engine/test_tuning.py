"""Tuning after rounding: nearer to the original, the same codes, an exact reload, and the same bits after a kill."""

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file

from quant_engine.calibration import split_samples
from quant_engine.checkpoint import ActivationGrid
from quant_engine.policy import Policy
from quant_engine.stages.quantize.block_files import block_path
from quant_engine.stages.tune import read_tuning
from quant_engine.windows import Windows
from tests.integration.quant_engine.runs import Left, file_hashes, gate_difference, left_by, policy_of, run_until, small
from tests.tiny_models import write_tiny_model

_SPEC: Final = small(samples=40)
_MEASURED: Final = small(samples=40, perplexity=True)
_SPLIT: Final = split_samples(40, 0.2)
_TUNING: Final = {"steps": 12, "learning_rate": 0.01, "warmup": 2, "batch_samples": 8}
_INTEGERS: Final[dict[str, Any]] = {"weights": {"format": "int3"}, "activations": {"format": "int4"}}
_GROUPS: Final[dict[str, Any]] = {
    "weights": {"format": "int4", "granularity": "group", "group_size": 16},
    "activations": {"format": "none"},
}
_FORMATS: Final[dict[str, dict[str, Any]]] = {
    "channels": _INTEGERS,
    "groups": _GROUPS,
    "rotated stream": {
        "weights": {"format": "int4"},
        "activations": {"format": "none"},
        "residual": {"kind": "hadamard"},
        "online": "inner",
    },
    "nvfp4": {"weights": {"format": "nvfp4"}, "activations": {"format": "nvfp4"}},
}


def _policy(name: str, **tuning: Any) -> Policy:
    transform = {"kind": "smooth_rotation", "statistic": {"kind": "l2"}}
    smooth = {"kind": "smooth", "statistic": {"kind": "l2"}}
    fields = _FORMATS[name] | {"transform": transform if name == "channels" else smooth}
    if name == "channels":
        fields["transform"] |= {"orders": "power_of_two", "permutation": "zigzag"}
    return policy_of(targets=["Linear"], **fields, tuning=_TUNING | tuning)


def _model(directory: Path, name: str) -> Path:
    architecture = {"channels": "gemma3", "groups": "phi3"}.get(name, "llama")
    return write_tiny_model(directory, architecture, intermediate=96)


def _tuned(directory: Path, name: str, **tuning: Any) -> Left:
    policy = _policy(name, **tuning)
    run_until("verify", _model(directory, name), policy, directory, **_SPEC)
    return left_by(directory, policy, directory, **_SPEC)


@pytest.mark.parametrize("name", _FORMATS)
def test_the_tuned_model_predicts_more_like_the_original(name: str, tmp_path: Path) -> None:
    left = _tuned(tmp_path, name)
    rounded, tuned = left.run.work_dir / "quantize", left.run.work_dir / "tune"
    found = read_tuning(tuned)
    assert 0 < found["best_step"] <= 12
    assert found["best_loss"] < 0.97 * found["start_loss"]
    # By another way: the logits of what the files say, on the windows that judged.
    # fp4 runs in bfloat16, and is tuned in fp32.
    near = 0.2 if "fp4" in name else 1e-3
    assert _divergence(left, tuned) == pytest.approx(found["best_loss"], rel=near)
    assert _divergence(left, rounded) == pytest.approx(found["start_loss"], rel=near)
    assert gate_difference(left) == 0.0
    before, after = (load_file(block_path(each, 0)) for each in (rounded, tuned))
    changed = {key.rpartition(".")[2] for key in before if not torch.equal(before[key], after[key])}
    # In a few steps no scale of three bits comes as far as the next one.
    assert changed == ({"weight"} if "fp4" in name else {"weight", "weight_scale"})
    # Of the weights only those of norms; the codes are what they were.
    weights = {key for key in before if key.endswith(".weight") and not torch.equal(before[key], after[key])}
    assert all("norm" in key for key in weights)


def test_what_is_not_learned_stays(tmp_path: Path) -> None:
    left = _tuned(tmp_path, "groups", learn=["scales"], steps=2)
    before, after = (load_file(block_path(left.run.work_dir / each, 0)) for each in ("quantize", "tune"))
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        key for key in before if key.endswith("weight_scale")
    }


def test_a_tuning_that_makes_everything_worse_leaves_the_rounded_model(tmp_path: Path) -> None:
    left = _tuned(tmp_path, "groups", learning_rate=5.0, steps=2)
    found = read_tuning(left.quantized)
    assert found["best_step"] == 0
    assert min(each["validation_loss"] for each in found["curve"]) > found["start_loss"] == found["best_loss"]
    before, after = (load_file(block_path(left.run.work_dir / each, 0)) for each in ("quantize", "tune"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert left.run.work_dir / "tune" == left.quantized


def test_a_killed_tuning_continues_to_the_same_bytes(tmp_path: Path) -> None:
    model, policy = _model(tmp_path / "model", "channels"), _policy("channels")
    run_until("evaluate", model, policy, tmp_path / "whole", **_MEASURED)
    for step in (1, 7):
        run_until("tune", model, policy, tmp_path / "killed", step, **_MEASURED)
    observer = run_until("evaluate", model, policy, tmp_path / "killed", **_MEASURED)
    advanced = [event[2] for event in observer.events if event[:2] == ("advanced", "tune")]
    # It went on from a judgment before the second kill. On a slow machine not every judgment stores a state.
    assert 1 < advanced[0] <= 6
    assert file_hashes(tmp_path / "killed" / "work" / "tune") == file_hashes(tmp_path / "whole" / "work" / "tune")


def _divergence(left: Left, quantized: Path) -> float:
    """The mean divergence of the files in ``quantized`` from the original, on the validation windows."""
    judged: Windows = left.windows[_SPLIT.fit : _SPLIT.training]
    original = left.original(judged.ids_ST).float().log_softmax(-1)
    found = left.streamed(judged.ids_ST, ActivationGrid.ENGINES, quantized=quantized).float().log_softmax(-1)
    divergence_ST = (original.exp() * (original - found)).sum(-1)[:, :-1]
    counted = divergence_ST[judged.predicted_ST[:, 1:]]
    return float(counted.mean())
