"""Every preset, cut short, ends in a checkpoint that reloads exactly; every kind of stage on every architecture."""

import math
from pathlib import Path
from typing import Any

import pytest

from quant_engine.errors import UnsupportedPolicy
from quant_engine.policy import PRESETS
from tests.integration.quant_engine.helpers import RecordingObserver
from tests.integration.quant_engine.runs import gate_difference, left_by, policy_of, run_policy, run_until, small
from tests.tiny_models import write_tiny_model

SMALL = small(perplexity=True)
_BLOCK: dict[str, Any] = {"training": {"kind": "block", "steps": 3, "batch_samples": 2}}
_TUNING: dict[str, Any] = {"tuning": {"steps": 2}}
_ROTATION: dict[str, Any] = {"training": {"kind": "rotation", "steps": 2}}
_CUT: dict[str, dict[str, Any]] = {
    "quantile-smoothrot-w4a4": {"search": {"alpha": [0.5], "q": [0.99, 1.0]}},
    "trainable-smoothrot-w4a4": {
        "search": {"alpha": [0.5], "q": [0.99, 1.0]},
        "training": {"steps": 4, "batch_tokens": 32},
    },
    "paper-2606.09927": {
        "search": {
            "kind": "paper",
            "alpha": [0.45, 0.5],
            "q": [0.99, 1.0],
            "top": 1,
            "learning_rates": [0.01, 0.02],
            "steps": 2,
        }
    },
    "spinquant-w4a4": _ROTATION,
    "flatquant-w4a4": _BLOCK,
    "omniquant-w4a4": _BLOCK,
    "best-w4a4": _BLOCK | _TUNING | {"weights": {"gptq": {"correction": 0.5}}},
    "hadamard-w4a4": _TUNING,
    "nvfp4": _TUNING,
    "mxfp4": _TUNING,
    # Neither 64 nor 128 divides the 96 channels inside a tiny model's feed-forward.
    "duquant-w4a4": {"transform": {"kind": "duquant", "block_size": 16}},
    "wush-w4a4": {"transform": {"kind": "wush", "block_size": 16}},
    "w4a16": {"weights": {"group_size": 32}} | _TUNING,
    "w4a16-g128": {"weights": {"group_size": 16}} | _TUNING,
    "w4a8-fp8": _TUNING,
}
_WHERE: dict[str, tuple[str, ...]] = {
    "rtn-w4a4": ("mistral",),
    "smoothrot-w4a4": ("qwen2",),
    "quantile-smoothrot-w4a4": ("phi3",),
    "trainable-smoothrot-w4a4": ("gemma3",),
    "paper-2606.09927": ("qwen3",),
    "quarot-w4a4": ("llama", "qwen3", "phi3"),
    "spinquant-w4a4": ("llama", "qwen3", "phi3"),
    "flatquant-w4a4": ("qwen3",),
    "wush-w4a4": ("gemma3",),
    "duquant-w4a4": ("phi3",),
    "omniquant-w4a4": ("qwen2",),
    "smoothquant-w8a8": ("gemma3",),
    "adaptive-w4a4": ("llama",),
    "adaptive-w3a3": ("phi3",),
    "best-w4a4": ("llama", "qwen2", "qwen3", "gemma3", "phi3"),  # GPTQ, corrected; blocks trained on quantized inputs
    "hadamard-w4a4": ("phi3",),
    "w4a16": ("gemma2",),
    "w4a16-g128": ("mistral",),
    "w4a8-fp8": ("llama",),
    "w8a8": ("qwen2",),
    "fp8": ("qwen3",),
    "nvfp4": ("llama",),
    "mxfp4": ("qwen3",),
}
_FULL_PRECISION_ENOUGH = ("smoothquant-w8a8", "w8a8", "fp8")


def _cut(preset: str, **fields: Any) -> dict[str, Any]:
    return {"preset": preset} | _CUT.get(preset, {}) | fields


def _assert_sound(perplexity: dict[str, float], bound: float) -> None:
    """Finite, and no worse than a model whose blocks are noise: such a one is off by orders of magnitude."""
    assert math.isfinite(perplexity["perplexity.quantized"])
    assert perplexity["perplexity.quantized"] < bound * perplexity["perplexity.original"]


def _metrics(observer: RecordingObserver) -> dict[str, float]:
    return {event[1]: event[2] for event in observer.events if event[0] == "metric"}


def test_no_preset_is_left_out() -> None:
    assert list(_WHERE) == [name for name, preset in PRESETS.items() if preset.policy.task == "quantize"]


@pytest.mark.parametrize(
    ("preset", "architecture"), [(preset, each) for preset, where in _WHERE.items() for each in where]
)
def test_a_preset_ends_in_a_checkpoint_that_reloads_exactly(preset: str, architecture: str, tmp_path: Path) -> None:
    # Wide enough for the groups of its kernel.
    sizes: dict[str, Any] = {"hidden": 128, "intermediate": 256} if preset == "w4a8-fp8" else {}
    model = write_tiny_model(tmp_path / "model", architecture, **sizes)
    policy = policy_of(**_cut(preset))
    observer = run_until("verify", model, policy, tmp_path, **SMALL)
    left = left_by(model, policy, tmp_path, **SMALL)
    assert gate_difference(left) == 0.0
    assert {row["name"] for row in observer.rows} == {reader for site in left.run.sites for reader in site.readers}
    _assert_sound(_metrics(observer), 1.1 if preset in _FULL_PRECISION_ENOUGH else 3.0)


def test_the_gate_itself_passes(tmp_path: Path) -> None:
    """In its fresh process."""
    model = write_tiny_model(tmp_path / "model", "phi3")
    result = run_policy(model, policy_of(**_cut("best-w4a4")), tmp_path, **SMALL)
    assert result.report["verification"]["max_abs_difference"] == 0.0
    assert set(result.report["training"]) == {"0", "1"}


@pytest.mark.parametrize("preset", ["quarot-w4a4", "spinquant-w4a4"])
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_gemma_has_no_residual_rotation_and_says_what_to_do(preset: str, architecture: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", architecture)
    with pytest.raises(UnsupportedPolicy, match="post_attention_layernorm") as caught:
        run_policy(model, policy_of(**_cut(preset)), tmp_path, **SMALL)
    assert "policy.online 'all'" in caught.value.hint


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize(
    "selection",
    [
        {"kind": "lowest_error", "candidates": ["none", "rotation", {"kind": "cat", "block_size": 16}, "kronecker"]},
        {"kind": "kurtosis", "outlying": "duquant", "typical": "wush"},
        {"kind": "differentiable", "candidates": ["rotation", "smooth_rotation"], "steps": 3},
    ],
    ids=lambda each: each["kind"],
)
def test_selections_of_every_kind(selection: dict[str, Any], architecture: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", architecture, layers=1)
    policy = policy_of(preset="adaptive-w4a4", selection=selection)
    observer = run_until("verify", model, policy, tmp_path, **SMALL)
    left = left_by(model, policy, tmp_path, **SMALL)
    assert gate_difference(left) == 0.0
    _assert_sound(_metrics(observer), 3.0)
    candidates = selection.get("candidates", (selection.get("outlying"), selection.get("typical")))
    allowed = {each if isinstance(each, str) else each["kind"] for each in candidates}
    assert {plan.kind.value for plan in left.plans.values()} <= allowed
