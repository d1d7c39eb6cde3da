"""An adapter is refused as what it is, alone and beside a model, with its base where that is the id of a model."""

import json
from pathlib import Path
from typing import Any

import pytest

from quant_engine.errors import InvalidModel
from quant_engine.model_files import ModelFiles, adapter_problem

_LORA = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
_ALONE = ("adapter_model.safetensors",)
_BESIDE = ("model.safetensors", "config.json", "adapter_model.safetensors")


def problem(directory: Path, files: tuple[str, ...], config: Any = None, tensors: tuple[str, ...] = ()) -> Any:
    for name in files:
        (directory / name).touch()
    if config is not None:
        (directory / "adapter_config.json").write_text(json.dumps(config))
    return adapter_problem(ModelFiles(directory), tensors)


@pytest.mark.parametrize(
    ("files", "config", "detail", "hint"),
    [
        (_ALONE, _LORA, "The model is an adapter (LORA) of owner/base,", "Merge it first"),
        (_ALONE, _LORA, "owner/base", "quantize owner/base."),
        (("adapter_model.bin",), {"peft_type": "IA3"}, "an adapter (IA3), which", "quantize the base model."),
        (("adapter_model.safetensors",), None, "an adapter, which", "merge_and_unload"),
        ((), _LORA, "an adapter (LORA) of owner/base", "Merge it first"),
        (("adapters.safetensors",), {"fine_tune_type": "lora", "model": "owner/base"}, "(LORA) of owner/base", "Merge"),
        (("config.json", *_ALONE), _LORA, "is no model by itself", "Merge it first"),
        (_ALONE, _LORA | {"peft_type": "PROMPT_TUNING"}, "adds learned tokens", "quantize owner/base, and load"),
        (_BESIDE, _LORA, "a full model and an adapter (LORA) of owner/base beside it", "remove the adapter's files"),
        (_BESIDE, None, "beside it (adapter_model.safetensors)", "remove the adapter's files"),
        (("pytorch_model.bin",), _LORA, "a full model and an adapter", "Merge it first"),
    ],
)
def test_an_adapter_is_told_as_one(files: tuple[str, ...], config: Any, detail: str, hint: str, tmp_path: Path) -> None:
    found = problem(tmp_path, files, config)
    assert (found.code, found.category) == ("adapter_not_merged", "user")
    assert detail in found.detail
    assert hint in found.hint


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "model.embed_tokens.lora_embedding_A",
        "lm_head.modules_to_save.default.weight",
        "model.layers.0.mlp.down_proj.ia3_l",
        "model.layers.0.mlp.down_proj.hada_w1_a",
    ],
)
def test_an_adapter_inside_the_weights_is_found(name: str, tmp_path: Path) -> None:
    found = problem(tmp_path, ("model.safetensors", "config.json"), tensors=("model.norm.weight", name))
    assert name in found.detail


@pytest.mark.parametrize(
    "base", ["/home/me/base", "../base", "a/b/c", "<script>", "owner/base\n", "x" * 200, 7, None, "owner/báse"]
)
def test_a_base_that_is_no_id_is_not_shown(base: Any, tmp_path: Path) -> None:
    found = problem(tmp_path, _ALONE, {"peft_type": "<LORA>", "base_model_name_or_path": base})
    assert found.detail == "The model is an adapter, which is no model by itself."
    assert found.hint.endswith("or quantize the base model.")


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.exploration.weight", "lm_head.weight")
    assert problem(tmp_path, ("model.safetensors", "config.json", "tokenizer.json"), tensors=names) is None


def test_a_broken_adapter_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"adapter_config\.json"):
        problem(tmp_path, _ALONE, ["not", "an", "object"])
