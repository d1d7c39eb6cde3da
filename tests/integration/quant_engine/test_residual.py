"""A rotation of the residual stream and of the value heads, fused: another set of weights for the same function."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from quant_engine.errors import InvalidModel, NumericalInstability, UnsupportedPolicy
from quant_engine.models import (
    CheckpointSource,
    ResidualRotation,
    RotatedSource,
    StreamedModel,
    hadamard_rotation,
    head_size,
    model_configuration,
)
from tests.integration.quant_engine.helpers import fixed_ids, streamed_logits
from tests.tiny_models import write_tiny_model

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "no_hadamard_of_full_order": ("llama", {"hidden": 92, "head_dim": 22}),
}


def _source(variant: str, directory: Path, **config: Any) -> CheckpointSource:
    architecture, settings = VARIANTS[variant]
    return CheckpointSource(write_tiny_model(directory, architecture, **(settings | config)))


def _orthogonal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def _random_rotation(source: CheckpointSource) -> ResidualRotation:
    config = model_configuration(source.config)
    heads = [_orthogonal(head_size(config), 1 + block) for block in range(config.num_hidden_layers)]
    return ResidualRotation(_orthogonal(config.hidden_size, 0), torch.stack(heads))


class _ExactNorm(nn.Module):
    """RMSNorm in the type of its input: the models' own compute in fp32 whatever they are given."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(weight), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()


def _exact_logits(source: CheckpointSource | RotatedSource) -> Tensor:
    """Of the whole model in fp64."""
    model = StreamedModel(source, dtype=torch.float64).whole()
    norms = {name: module for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")}
    for name, norm in norms.items():
        model.set_submodule(name, _ExactNorm(norm.weight.detach(), norm.variance_epsilon))
    with torch.no_grad():
        logits: Tensor = model(fixed_ids(length=24), use_cache=False).logits
    return logits


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("rotation", ["random", "hadamard", "r1_alone"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_function_stays_the_same(variant: str, rotation: str, tmp_path: Path) -> None:
    source = _source(variant, tmp_path)
    matrices = _random_rotation(source)
    if rotation == "hadamard":
        matrices = hadamard_rotation(model_configuration(source.config), seed=3)
    elif rotation == "r1_alone":
        matrices = replace(matrices, r2_LKK=None)
    rotated = RotatedSource(source, matrices)
    assert _difference(_exact_logits(rotated), _exact_logits(source)) < 1e-9
    single = [streamed_logits(StreamedModel(each), fixed_ids()) for each in (rotated, source)]
    assert _difference(*single) < 1e-5


@pytest.mark.parametrize("variant", ["llama_biases", "qwen2", "phi3"])
def test_the_tensors_are_the_dense_definition(variant: str, tmp_path: Path) -> None:
    source = _source(variant, tmp_path)
    rotation = _random_rotation(source)
    rotated = RotatedSource(source, rotation)
    stored, found = (each.read(each.tensors, dtype=torch.float64) for each in (source, rotated))
    r1, r2 = rotation.r1_DD, rotation.r2_LKK
    assert r2 is not None
    config, block = model_configuration(source.config), "model.layers.1"
    values = torch.block_diag(*[r2[1]] * config.num_key_value_heads)
    outputs = torch.block_diag(*[r2[1]] * config.num_attention_heads)
    g = torch.diag(stored[f"{block}.input_layernorm.weight"])
    value = f"{block}.self_attn." + ("qkv_proj" if variant == "phi3" else "v_proj")

    def assert_close(name: str, expected: Tensor) -> None:
        assert torch.allclose(found[name], expected, rtol=1e-10, atol=1e-12), name

    before_values = stored[f"{value}.weight"] @ g @ r1
    rows = len(values)
    assert_close(f"{value}.weight", torch.cat([before_values[:-rows], values.T @ before_values[-rows:]]))
    if f"{value}.bias" in stored:
        assert_close(f"{value}.bias", stored[f"{value}.bias"] @ values)
    assert_close(f"{block}.self_attn.o_proj.weight", r1.T @ stored[f"{block}.self_attn.o_proj.weight"] @ outputs)
    assert_close(f"{block}.mlp.down_proj.weight", r1.T @ stored[f"{block}.mlp.down_proj.weight"])
    if f"{block}.mlp.down_proj.bias" in stored:
        assert_close(f"{block}.mlp.down_proj.bias", stored[f"{block}.mlp.down_proj.bias"] @ r1)
        assert_close(f"{block}.self_attn.q_proj.bias", stored[f"{block}.self_attn.q_proj.bias"])
    assert_close("model.embed_tokens.weight", stored["model.embed_tokens.weight"] @ r1)
    assert_close("lm_head.weight", stored["lm_head.weight"] @ torch.diag(stored["model.norm.weight"]) @ r1)
    norms = ("model.norm", f"{block}.input_layernorm", f"{block}.post_attention_layernorm")
    assert all(torch.equal(found[f"{norm}.weight"], torch.ones(config.hidden_size).double()) for norm in norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["llama", "qwen3", "phi3"])
def test_the_rotated_model_is_an_ordinary_checkpoint(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    rotated = RotatedSource(_source(variant, tmp_path / "dense", dtype=dtype), _random_rotation_of(variant, tmp_path))
    exported = tmp_path / "rotated"
    exported.mkdir()
    state = rotated.read(rotated.tensors, dtype=rotated.dtype)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, exported / "model.safetensors")
    (exported / "config.json").write_text(json.dumps(rotated.config))
    model, loading = AutoModelForCausalLM.from_pretrained(exported, dtype="auto", output_loading_info=True)
    assert not any(loading.values()), loading
    assert not model.config.tie_word_embeddings
    with torch.no_grad():
        logits = model.eval()(fixed_ids()).logits
    assert torch.equal(logits, streamed_logits(StreamedModel(rotated, dtype=dtype), fixed_ids()))
    assert {tensor.dtype for tensor in state.values()} == {dtype}


def _random_rotation_of(variant: str, tmp_path: Path) -> ResidualRotation:
    return _random_rotation(_source(variant, tmp_path / "sizes"))


def test_a_tied_head_becomes_a_tensor_of_its_own(tmp_path: Path) -> None:
    source = _source("llama", tmp_path)
    rotated = RotatedSource(source, hadamard_rotation(model_configuration(source.config), seed=0))
    assert "lm_head.weight" not in source.tensors
    assert set(rotated.tensors) == {*source.tensors, "lm_head.weight"}
    assert rotated.weight_bytes == source.weight_bytes + 512 * 64 * 4
    assert (rotated.dtype, rotated.directory) == (source.dtype, source.directory)
    with pytest.raises(InvalidModel, match="holds no tensor"):
        rotated.read(["model.layers.0.mlp.down_proj.bias"], dtype=torch.float32)


def test_the_fingerprint_follows_the_rotation_and_the_weights(tmp_path: Path) -> None:
    source, other = _source("llama", tmp_path / "a"), _source("llama", tmp_path / "b", seed=1)
    config = model_configuration(source.config)
    rotations = [hadamard_rotation(config, seed=0), hadamard_rotation(config, seed=1)]
    rotations += [hadamard_rotation(config, seed=0, value_heads=False)]
    views = [RotatedSource(each, rotation) for each in (source, other) for rotation in rotations]
    prints = {view.fingerprint for view in views} | {source.fingerprint, other.fingerprint}
    assert len(prints) == 8
    assert RotatedSource(source, hadamard_rotation(config, seed=0)).fingerprint == views[0].fingerprint


def test_hadamard_rotations_are_spread_orthogonal_and_repeatable(tmp_path: Path) -> None:
    config = model_configuration(_source("qwen3", tmp_path).config)
    rotation, again = (hadamard_rotation(config, seed=5) for _ in range(2))
    r1, r2 = rotation.r1_DD, rotation.r2_LKK
    assert r2 is not None
    assert r1.dtype == r2.dtype == torch.float64
    assert r2.shape == (2, 32, 32)
    assert torch.equal(r1, again.r1_DD)
    assert torch.allclose(r1.abs(), torch.full((64, 64), 64**-0.5, dtype=torch.float64))
    assert torch.allclose(r2.mT @ r2, torch.eye(32, dtype=torch.float64).expand(2, 32, 32), atol=1e-12)
    assert not torch.equal(r2[0], r2[1])
    assert not torch.equal(r1, hadamard_rotation(config, seed=6).r1_DD)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_norms_behind_the_linears_are_refused_with_a_remedy(architecture: str, tmp_path: Path) -> None:
    source = CheckpointSource(write_tiny_model(tmp_path, architecture))
    with pytest.raises(UnsupportedPolicy, match="post_attention_layernorm") as caught:
        RotatedSource(source, hadamard_rotation(model_configuration(source.config), seed=0))
    assert "policy.online 'all'" in caught.value.hint


def test_matrices_of_another_size_or_not_orthogonal_are_refused(tmp_path: Path) -> None:
    source = _source("llama", tmp_path)
    good = _random_rotation(source)
    assert good.r2_LKK is not None
    with pytest.raises(UnsupportedPolicy, match=r"R1 has the shape \[32, 32\]; .* \[64, 64\]"):
        RotatedSource(source, replace(good, r1_DD=_orthogonal(32, 0)))
    with pytest.raises(UnsupportedPolicy, match="R2 has the shape"):
        RotatedSource(source, replace(good, r2_LKK=good.r2_LKK[:1]))
    with pytest.raises(NumericalInstability, match="R1 is not orthogonal"):
        RotatedSource(source, replace(good, r1_DD=good.r1_DD * 1.01))
    with pytest.raises(NumericalInstability, match="R2 is not orthogonal"):
        RotatedSource(source, replace(good, r2_LKK=good.r2_LKK * float("nan")))
