"""``gguf-source``: plain transformers reads the fused model as the original, and the importance matrix is its own."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from quant_engine.checkpoint.importance import gguf_names
from quant_engine.errors import UnsupportedPolicy, VerificationFailed
from quant_engine.models import relative_difference
from quant_engine.policy import Output
from quant_engine.stages.calibrate import training_windows
from quant_engine.stages.export import CHECKPOINT
from quant_engine.stages.gguf_source.stage import GGUF_SOURCE, IMPORTANCE, checked_difference
from tests.integration.quant_engine.helpers import fixed_ids
from tests.integration.quant_engine.runs import Left, file_hashes, left_by, policy_of, run_policy, run_until, small
from tests.tiny_models import write_tiny_model

ALSO: dict[str, Any] = small() | {"output": Output(also=("gguf-source",))}
# Hadamards behind L2 diagonals, of which the diagonals alone are fused.
POLICY = policy_of(preset="smoothrot-w4a4", transform={"statistic": {"kind": "l2"}}, targets=["Linear"])
_POST_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run of ``POLICY`` has left, by architecture; each made once."""

    @cache
    def made(architecture: str) -> tuple[Path, Left]:
        out = tmp_path_factory.mktemp(architecture)
        model = write_tiny_model(out / "model", architecture)
        run_until("export", model, POLICY, out, **ALSO)
        return out, left_by(model, POLICY, out, **ALSO)

    return made


def _plain(directory: Path) -> nn.Module:
    model, loading = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def _source(out: Path) -> Path:
    return out / "work" / "gguf_source" / GGUF_SOURCE


@torch.no_grad()
def _squares(model: nn.Module, names: list[str], ids_ST: Tensor) -> dict[str, Tensor]:
    """Σ x² of every linear's input, by hooks on the whole model of transformers."""
    found: dict[str, Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: found.__setitem__(name, inputs[0].double().square().sum(dim=(0, 1)))
        )
    model(ids_ST)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_plain_transformers_gives_the_originals_logits(architecture: str, left: Any) -> None:
    out, _ = left(architecture)
    stored = {name: each for file in _source(out).glob("*.safetensors") for name, each in load_file(file).items()}
    assert {each.dtype for each in stored.values()} == {torch.float16}
    original, fused = _plain(out / "model"), _plain(_source(out))
    with torch.no_grad():
        difference = relative_difference(original(fixed_ids()).logits, fused(fixed_ids()).logits)
    assert 0.0 < difference < 5e-3
    # Every tensor that takes part in a diagonal is another one.
    weights = original.state_dict()
    changed = {name for name, each in stored.items() if relative_difference(weights[name], each) > 0.05}
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    heads = {name for name in stored if name.endswith(("q_norm.weight", "k_norm.weight"))}
    after = {name for name in stored if architecture == "gemma3" and name.endswith(_POST_NORMS)}
    assert changed == stored.keys() - ends - heads - after


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_the_importance_matrix_is_that_of_the_fused_models_inputs(architecture: str, left: Any) -> None:
    out, run = left(architecture)
    names = gguf_names(run.run.model.architecture, [each for s in run.run.every_site for each in s.all_readers], 2)
    windows = training_windows(run.run, run.windows)
    squares = _squares(_plain(_source(out)), list(names), windows.ids_ST)
    stored = {
        each.name: torch.from_numpy(each.data.copy()) for each in gguf.GGUFReader(_source(out) / IMPORTANCE).tensors
    }
    assert len(stored) == 2 * len(names)
    for linear, name in names.items():
        assert float(stored[f"{name}.counts"]) == windows.tokens
        assert torch.allclose(stored[f"{name}.in_sum2"][0].double(), squares[linear], rtol=1e-2)
    # Heads that share a diagonal still have inputs of their own.
    first, second = stored["blk.0.attn_output.weight.in_sum2"][0].chunk(4)[:2]
    assert not torch.allclose(first, second, rtol=0.1)


def test_one_changed_diagonal_fails_the_check(left: Any, tmp_path: Path) -> None:
    out, run = left("llama")
    windows = training_windows(run.run, run.windows)
    for file in _source(out).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert checked_difference(run.run, tmp_path, windows) < 5e-3
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    block = load_file(path)
    name = "model.layers.0.post_attention_layernorm.weight"
    save_file(block | {name: block[name].roll(1)}, path, metadata={"format": "pt"})
    with pytest.raises(VerificationFailed, match="float16 explains"):
        checked_difference(run.run, tmp_path, windows)


@pytest.mark.parametrize("done", [1, 2])
def test_a_killed_run_ends_with_the_same_bytes(done: int, left: Any, tmp_path: Path) -> None:
    out, _ = left("llama")
    run_until("gguf_source", out / "model", POLICY, tmp_path, done, **ALSO)
    resumed = run_until("export", out / "model", POLICY, tmp_path, **ALSO)
    assert next(event[2] for event in resumed.events if event[:2] == ("advanced", "gguf_source")) == done
    assert file_hashes(tmp_path / "work" / "gguf_source") == file_hashes(out / "work" / "gguf_source")


def test_without_diagonals_the_original_is_written_and_the_card_says_so(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    run_until("verify", model, policy_of(preset="rtn-w4a4", targets=["down_proj"]), tmp_path, **ALSO)
    directory, checkpoint = _source(tmp_path), tmp_path / "work" / "export" / CHECKPOINT
    found = json.loads((checkpoint / "quantry.json").read_text())["gguf_source"]
    # The importance matrix has the linears that are not quantized too.
    assert (found["fused_sites"], found["sites"], found["importance"]["linears"]) == (0, 8, 14)
    assert "diagonals of 0 of 8 inputs fused" in (checkpoint / "README.md").read_text()
    assert {"config.json", "tokenizer.json", IMPORTANCE} <= {path.name for path in directory.iterdir()}
    weights = _plain(model).state_dict()
    for file in directory.glob("*.safetensors"):
        for name, stored in load_file(file).items():
            assert torch.equal(stored, weights[name].half())


def test_a_rotated_residual_stream_is_refused_before_the_run(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with pytest.raises(UnsupportedPolicy, match="rotation of the residual stream"):
        run_policy(model, policy_of(preset="quarot-w4a4"), tmp_path, **ALSO)
