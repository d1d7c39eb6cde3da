"""What is stored and what a class reads are compared by headers alone; every difference is told by name."""

from pathlib import Path
from typing import Any, Final

import pytest

from quant_engine.errors import InvalidModel
from quant_engine.interface.architectures import ARCHITECTURES
from quant_engine.interface.layout import ModelLayout, model_layout
from quant_engine.model_files import ModelDescription, ModelFiles, StoredTensor
from quant_engine.model_files.unread import check_tensors, unread_problems

SIZES: Final = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
Q_PROJ: Final = "model.layers.1.self_attn.q_proj"


def layout_of(model_type: str = "llama", **config: Any) -> ModelLayout:
    return model_layout({"model_type": model_type, **SIZES, **config})


def stored(layout: ModelLayout, *without: str, **extra: tuple[int, ...]) -> ModelDescription:
    """A model that stores what its class reads, apart from ``without``, and ``extra`` tensors by name and shape."""
    shapes = {name: shape for name, shape in layout.tensors.items() if name not in without} | extra
    tensors = {name: StoredTensor("F32", shape, 0, "model.safetensors") for name, shape in shapes.items()}
    return ModelDescription(ModelFiles(Path("unused")), tensors)


def problem(layout: ModelLayout, *without: str, **extra: tuple[int, ...]) -> InvalidModel:
    (found,) = unread_problems(stored(layout, *without, **extra), layout)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.class_name)
def test_a_model_that_stores_what_its_class_reads_has_no_problem(architecture: Any) -> None:
    layout = layout_of(architecture.model_type)
    assert unread_problems(stored(layout), layout) == []
    check_tensors(stored(layout), layout)


@pytest.mark.parametrize(
    ("name", "shape", "told", "remedy"),
    [
        (f"{Q_PROJ}.bias", (32,), "stores biases that", "attention_bias"),
        ("layers.1.self_attn.q_proj.bias", (32,), "stores biases that", "attention_bias"),
        ("lm_head.bias", (64,), "stores biases that", "announce"),
        ("model.norm.bias", (32,), "stores biases that", "announce"),
        ("model.layers.2.self_attn.q_proj.weight", (32, 32), r"blocks beyond num_hidden_layers \(2\)", "num_hidden"),
        ("layers.61.input_layernorm.weight", (32,), "blocks beyond", "num_hidden_layers"),
        (f"{Q_PROJ}.weight_scale", (32, 1), "scales or codes", "dense model"),
        (f"{Q_PROJ}.weight_scale_inv", (1, 1), "scales or codes", "dense model"),
        (f"{Q_PROJ}.qweight", (4, 32), "scales or codes", "dense model"),
        ("score.weight", (2, 32), "parts of another head", "head"),
        ("v_head.summary.weight", (1, 32), "parts of another head", "head"),
        ("model.mtp.0.proj.weight", (32, 64), "several tokens", "save_pretrained"),
        ("model.layers.2.eh_proj.weight", (32, 64), "several tokens", "save_pretrained"),
        ("vision_tower.patch_embed.weight", (32, 3), "parts of a multimodal model", "text part"),
        ("model.visual.blocks.0.weight", (32, 3), "parts of a multimodal model", "text part"),
        (f"{Q_PROJ}.lora_A.weight", (4, 32), "parts of an adapter", "merge_and_unload"),
        ("model.layers.0.self_attn.q_norm.weight", (8,), "stores tensors", "config.json belongs"),
        ("model.layers.0.block_sparse_moe.gate.weight", (8, 32), "stores tensors", "config.json belongs"),
        ("weights", (3,), "stores tensors", "config.json belongs"),
        ("model.layers.0.self_attn.bias", (32,), "stores tensors", "config.json belongs"),  # no mask: of one axis
    ],
)
def test_an_unread_tensor_is_named_with_its_kind_and_a_remedy(
    name: str, shape: tuple[int, ...], told: str, remedy: str
) -> None:
    layout = layout_of()
    found = problem(layout, **{name: shape})
    assert name in found.detail
    assert "LlamaForCausalLM" in found.detail
    assert remedy in found.hint
    with pytest.raises(InvalidModel, match=told):
        check_tensors(stored(layout, **{name: shape}), layout)


def test_many_unread_tensors_are_counted() -> None:
    extra = {f"model.layers.{block}.mlp.{part}_proj.bias": (48,) for block in (0, 1) for part in ("gate", "up")}
    found = problem(layout_of(), **extra)
    assert found.detail.count(".bias") == 3
    assert "and 1 more" in found.detail


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.class_name)
@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("model.layers.1.self_attn.rotary_emb.inv_freq", (4,), "F32"),
        ("model.rotary_emb.inv_freq", (4,), "F32"),
        ("rotary_emb.original_inv_freq", (4,), "F32"),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", (1, 1, 512, 8), "F32"),
        ("model.layers.1.self_attn.masked_bias", (), "F32"),
        ("model.layers.1.self_attn.bias", (1, 1, 512, 512), "BOOL"),
        ("model.embeddings.position_ids", (1, 512), "I64"),
        ("model.layers.1.self_attn._extra_state", (0,), "U8"),
    ],
)
def test_buffers_that_every_class_computes_pass(
    architecture: Any, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    layout = layout_of(architecture.model_type)
    described = stored(layout)
    tensors = {**described.tensors, name: StoredTensor(dtype, shape, 0, "model.safetensors")}
    assert unread_problems(ModelDescription(described.files, tensors), layout) == []


@pytest.mark.parametrize(
    ("without", "hint"),
    [
        ((f"{Q_PROJ}.weight",), "original"),
        (("model.norm.weight",), "original"),
        (("model.embed_tokens.weight",), "original"),
        (("lm_head.weight",), "tie_word_embeddings"),
    ],
)
def test_a_missing_tensor_is_named(without: tuple[str, ...], hint: str) -> None:
    found = problem(layout_of(tie_word_embeddings=False), *without)
    assert f"lacks tensors that a LlamaForCausalLM of its config.json needs: {without[0]}." in found.detail
    assert hint in found.hint


def test_one_of_a_tied_pair_is_enough_and_none_is_not() -> None:
    layout = layout_of(tie_word_embeddings=True)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    for missing in ((embedding,), (head,), ()):
        assert unread_problems(stored(layout, *missing), layout) == []
    assert embedding in problem(layout, embedding, head).detail


def test_a_qwen2_without_its_biases_lacks_them() -> None:
    names = [name for name in layout_of("qwen2").tensors if name.endswith(".bias")]
    assert "and 3 more" in problem(layout_of("qwen2"), *names).detail


def test_a_shape_that_the_configuration_does_not_give_is_named_with_both() -> None:
    found = problem(layout_of(), **{f"{Q_PROJ}.weight": (64, 32)})
    assert f"{Q_PROJ}.weight is [64, 32] and has to be [32, 32]" in found.detail


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3", "I32", "BOOL"])
def test_codes_are_no_weights(dtype: str) -> None:
    layout = layout_of()
    described = stored(layout)
    tensors = {**described.tensors, f"{Q_PROJ}.weight": StoredTensor(dtype, (32, 32), 0, "model.safetensors")}
    (found,) = unread_problems(ModelDescription(described.files, tensors), layout)
    assert f"codes where its class has weights: {Q_PROJ}.weight ({dtype})." in found.detail


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "transformer.", "_orig_mod."])
def test_a_prefix_that_nobody_removes_is_told_once_and_not_as_tensors_that_are_missing(prefix: str) -> None:
    layout = layout_of()
    names = [name for name in layout.tensors if name.startswith("model.")]
    extra = {prefix + name.removeprefix("model."): layout.tensors[name] for name in names}
    found = problem(layout, *names, **extra)
    assert f"begin with {prefix}" in found.detail
    assert "LlamaForCausalLM" in found.hint


def test_one_parameter_under_two_names_is_refused() -> None:
    found = problem(layout_of(), **{"norm.weight": (32,)})
    assert "stores one tensor twice, as model.norm.weight and as norm.weight" in found.detail


def test_what_a_source_of_quantized_weights_reads_counts_as_read_and_stands_for_its_weights() -> None:
    layout = layout_of()
    linear = "model.layers.0.mlp.up_proj"
    parts = {f"{linear}.weight_packed": (48, 4), f"{linear}.weight_scale": (48, 1)}
    described = stored(layout, f"{linear}.weight", **parts)
    assert unread_problems(described, layout, frozenset(parts)) == []
    parts = {f"{linear}.weight": (48, 32), f"{linear}.weight_scale": (48, 1)}
    assert unread_problems(stored(layout, **parts), layout, frozenset(parts)) == []
    # A scale that is not read is told all the same.
    (found,) = unread_problems(stored(layout, **parts), layout, frozenset([f"{linear}.weight"]))
    assert f"{linear}.weight_scale" in found.detail


def test_codes_stand_for_a_weight_of_its_shape_and_not_for_its_bias() -> None:
    layout = layout_of("qwen2")
    parts = {f"{Q_PROJ}.weight": (32, 32), f"{Q_PROJ}.weight_scale": (32, 1)}
    (found,) = unread_problems(stored(layout, f"{Q_PROJ}.bias", **parts), layout, frozenset(parts))
    assert f"lacks tensors that a Qwen2ForCausalLM of its config.json needs: {Q_PROJ}.bias." in found.detail
    short = parts | {f"{Q_PROJ}.weight": (16, 32)}
    (found,) = unread_problems(stored(layout, **short), layout, frozenset(parts))
    assert f"{Q_PROJ}.weight is [16, 32] and has to be [32, 32]" in found.detail
