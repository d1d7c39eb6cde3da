"""A checkpoint is measured before it is opened, and its config can not ask for foreign code."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quant_engine.errors import EngineError, InvalidModel, ModelNotFound, UnsafeCheckpoint, UnsupportedArchitecture
from quant_engine.model_files import MAX_HEADER_BYTES, MAX_TENSORS, safe_config
from quant_engine.model_files.opening import MAX_CONFIG_BYTES
from quant_engine.models import ARCHITECTURES, CheckpointSource, architecture_of
from tests.tiny_models import write_tiny_model


def _write_raw(directory: Path, header: bytes, data: bytes = b"", length: int | None = None) -> CheckpointSource:
    prefix = struct.pack("<Q", len(header) if length is None else length)
    (directory / "model.safetensors").write_bytes(prefix + header + data)
    return CheckpointSource(directory)


def _header(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (b"{}", b"", MAX_HEADER_BYTES + 1, "claims 16,777,217 bytes"),
        (b"{}", b"", 4000, "ends inside its header"),
        (b"{not json", b"", None, "not JSON"),
        (b"[" * 100_000, b"", None, "not JSON"),
        (b"[]", b"", None, "not a JSON object"),
        (_header(a=_ENTRY), b"1234567", None, "has 79|bytes, but the file has"),
        (_header(a=_ENTRY), b"123456789", None, "bytes, but the file has"),
        (_header(a=_ENTRY | {"shape": [3]}), b"12345678", None, "does not match its shape"),
        (_header(a=_ENTRY | {"dtype": "F6_E2M3"}), b"12345678", None, "unsupported type"),
        (_header(a={"dtype": "F32"}), b"", None, "malformed"),
        (_header(**{"a" * 513: _ENTRY}), b"12345678", None, "more than 512 characters"),
        (_header(a=_ENTRY | {"data_offsets": [8, 0]}), b"", None, "does not match its shape"),
    ],
)
def test_a_broken_file_is_refused_with_a_remedy(
    header: bytes, data: bytes, length: int | None, message: str, tmp_path: Path
) -> None:
    source = _write_raw(tmp_path, header, data, length)
    with pytest.raises(EngineError, match=message) as caught:
        _ = source.tensors
    # Only a header of a size that no real file has is a danger; the others are damaged.
    assert caught.type is (UnsafeCheckpoint if "claims" in message else InvalidModel)
    assert "Download" in caught.value.hint


def test_a_million_empty_tensors_are_refused_without_opening_them(tmp_path: Path) -> None:
    entries = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(MAX_TENSORS + 1)}
    with pytest.raises(UnsafeCheckpoint, match="100,001 tensors"):
        _ = _write_raw(tmp_path, _header(**entries)).tensors


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidModel):
        _ = CheckpointSource(tmp_path).tensors


def test_a_truncated_real_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InvalidModel, match="describes"):
        _ = CheckpointSource(tmp_path).tensors


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_can_not_point_elsewhere(name: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UnsafeCheckpoint, match="outside its directory"):
        _ = CheckpointSource(tmp_path).shards


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 7}, {"a": None}, {"a": {"b": "c"}}])
def test_an_index_of_the_wrong_shape_is_refused(weight_map: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidModel, match="no usable weight_map"):
        _ = CheckpointSource(tmp_path).shards


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file({"a": torch.ones(2)}, tmp_path / name)
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(InvalidModel, match=r"stores the tensor a twice, in model-1\.safetensors and in model-2"):
        _ = CheckpointSource(tmp_path).tensors


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(InvalidModel, match=r"one\.safetensors that the index names is missing"):
        _ = CheckpointSource(tmp_path).shards
    save_file({"b": torch.zeros(2)}, tmp_path / "one.safetensors")
    with pytest.raises(InvalidModel, match="names tensors that no weight file holds: a"):
        _ = CheckpointSource(tmp_path).tensors


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeCheckpoint, match="not safetensors: pytorch_model"):
        _ = CheckpointSource(tmp_path).tensors


def test_a_missing_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model directory"):
        _ = CheckpointSource(tmp_path / "nothing").tensors
    with pytest.raises(ModelNotFound, match="no weights"):
        _ = CheckpointSource(tmp_path).tensors
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        _ = CheckpointSource(tmp_path).config


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", InvalidModel),
        (b"[1]", InvalidModel),
        (b"\xff\xfe", InvalidModel),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, InvalidModel),
        (b'{"a":' * 100_000, InvalidModel),
        (b" " * (MAX_CONFIG_BYTES + 1), UnsafeCheckpoint),
    ],
)
def test_a_broken_config_is_refused(content: bytes, error: type[EngineError], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=r"config\.json"):
        _ = CheckpointSource(tmp_path).config


def test_the_config_loses_everything_that_could_run_code() -> None:
    config = {
        "model_type": "llama",
        "auto_map": {"AutoModel": "evil.Model"},
        "_attn_implementation": "someone/kernel",
        "rope_parameters": {"rope_type": "default", "trust_remote_code": True, "_x": [{"auto_map": 1, "keep": 2}]},
        "layers": [{"_private": 1, "public": 2}],
    }
    assert safe_config(config) == {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "default"},
        "layers": [{"public": 2}],
    }


def test_an_already_quantized_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {}}')
    with pytest.raises(UnsupportedArchitecture, match="already quantized"):
        _ = CheckpointSource(tmp_path).config


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "gemma3", "architectures": ["LlamaForCausalLM"]},
        {},
        {"model_type": ["llama"]},
    ],
)
def test_other_architectures_are_named_and_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        architecture_of(config)
    assert all(architecture.class_name in caught.value.hint for architecture in ARCHITECTURES)


@pytest.mark.parametrize(
    ("config", "detail", "hint"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "has no model_type", "config.json"),
        ({"model_type": "qwen2", "architectures": ["LlamaForCausalLM"]}, "contradicts itself", "config.json"),
        (
            {"model_type": "qwen3", "architectures": ["Qwen3Model"]},
            "a 'Qwen3Model'",
            "Qwen3ForCausalLM without its head",
        ),
    ],
)
def test_a_class_that_is_nearly_one_is_told_as_what_it_is(config: dict[str, Any], detail: str, hint: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=detail) as caught:
        architecture_of(config)
    assert hint in caught.value.hint
    assert "None" not in caught.value.detail


def test_the_architectures_are_those_that_the_service_announces() -> None:
    assert tuple(architecture.class_name for architecture in ARCHITECTURES) == (
        *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
        *("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"),
    )
    assert architecture_of({"model_type": "qwen3"}).class_name == "Qwen3ForCausalLM"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stored_type_is_found_and_tensors_are_read_as_asked(dtype: torch.dtype, tmp_path: Path) -> None:
    source = CheckpointSource(write_tiny_model(tmp_path, dtype=dtype))
    assert source.dtype == dtype
    read = source.read(["model.norm.weight"], dtype=torch.float32)
    assert read["model.norm.weight"].dtype == torch.float32
    with pytest.raises(InvalidModel, match="holds no tensor"):
        source.read(["model.nothing"], dtype=dtype)


def test_the_fingerprint_follows_every_byte(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path) / "model.safetensors"
    before = CheckpointSource(tmp_path).fingerprint
    assert CheckpointSource(tmp_path).fingerprint == before
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert CheckpointSource(tmp_path).fingerprint != before
