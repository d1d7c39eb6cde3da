"""A model that is quantized already is known by any sign; what can not be read is refused by the name of its format."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_engine.errors import EngineError, InvalidModel, UnsupportedQuantization
from quant_engine.model_files import (
    ModelDescription,
    ModelFiles,
    QuantizationKind,
    StoredTensor,
    check_source,
    describe_directory,
    source_quantization,
    without_quantization,
)

_LINEAR = "model.layers.1.mlp.up_proj"
_MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
_COMPRESSED = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {}}
_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def tensor(dtype: str = "BF16", *shape: int) -> StoredTensor:
    return StoredTensor(dtype=dtype, shape=shape, bytes=0, file="model.safetensors")


def described(
    directory: Path,
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
) -> ModelDescription:
    for name, content in ({"config.json": {"model_type": "llama"} | dict(config or {})} | dict(files or {})).items():
        (directory / name).write_text(json.dumps(content))
    dense = {"model.embed_tokens.weight": tensor("BF16", 512, 64), "model.norm.weight": tensor("BF16", 64)}
    return ModelDescription(ModelFiles(directory), dense | dict(tensors))


def coded(dtype: str, *scale: int, shape: tuple[int, ...] = (96, 64), part: str = "weight_scale") -> dict[str, Any]:
    return {f"{_LINEAR}.weight": tensor(dtype, *shape), f"{_LINEAR}.{part}": tensor("F32", *scale)}


def test_a_dense_model_is_none(tmp_path: Path) -> None:
    tensors = {f"{_LINEAR}.weight": tensor("F32", 96, 64), "model.layers.0.self_attn.bias": tensor("BOOL", 1, 8, 8)}
    found = source_quantization(described(tmp_path, tensors, {"quantization_config": None}))
    assert (found.kind, found.name, found.weights) == (QuantizationKind.NONE, "", {})


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "AWQ"}}, "AWQ"),
        ({"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"llm_config": {"inner": {"quantization_config": {"quant_method": "mxfp4"}}}}, "MXFP4"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "ModelOpt NVFP4"),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"quantization_config": {"quant_method": "brand-new"}}, "brand-new"),
        ({"quantization_config": {"quant_method": "<b>" * 99}}, "an unnamed format"),
        ({"quantization_config": {}}, "an unnamed format"),
        ({"quantization_config": {"quant_method": ["fp8"]}}, "an unnamed format"),
    ],
)
def test_a_section_at_any_depth_is_a_sign(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedQuantization, match=f"already quantized: {name}") as refused:
        source_quantization(described(tmp_path, {}, config))
    assert "dense original" in refused.value.hint


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "GPTQ"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128}, "AWQ"),
        ("quant_config.json", {"quant_method": "hqq"}, "HQQ"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "ModelOpt NVFP4"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "W4A8_AWQ"}}, "ModelOpt W4A8_AWQ"),
    ],
)
def test_a_file_beside_the_config_is_a_sign(file: str, content: dict[str, Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedQuantization, match=rf"{name} \({file}\)"):
        source_quantization(described(tmp_path, {}, files={file: content}))


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"qweight": ("I32", 8, 96), "qzeros": ("I32", 1, 12), "scales": ("F16", 1, 96), "g_idx": ("I32", 64)}, "GPTQ"),
        ({"qweight": ("I32", 64, 12), "qzeros": ("I32", 1, 12), "scales": ("F16", 1, 96)}, "GPTQ or AWQ"),
        ({"weight": ("U8", 3072, 1), "weight.absmax": ("F32", 96)}, "bitsandbytes"),
        ({"weight": ("U8", 3072, 1), "weight.quant_state.bitsandbytes__nf4": ("U8", 80)}, "bitsandbytes"),
        ({"weight": ("I8", 96, 64), "SCB": ("F32", 96)}, "bitsandbytes"),
        ({"weight": ("U8", 96, 32), "weight_scale": ("F8_E4M3", 96, 4), "weight_scale_2": ("F32",)}, "ModelOpt NVFP4"),
        ({"weight": ("I8", 96, 64), "weight_scale": ("F32", 96), "pre_quant_scale": ("F32", 64)}, "ModelOpt AWQ or"),
        ({"weight_packed": ("I32", 96, 8), "weight_scale": ("BF16", 96, 1)}, "compressed-tensors"),
        ({"weight": ("U32", 96, 8), "scales": ("BF16", 96, 1), "biases": ("BF16", 96, 1)}, "MLX"),
        ({"W_q": ("U8", 96, 32)}, "HQQ"),
        ({"weight": ("I8", 96, 64), "weight_scale": ("F32", 96), "weight_zero_point": ("I8", 96)}, "codes with zero"),
    ],
)
def test_a_tensor_is_a_sign(parts: dict[str, tuple[Any, ...]], name: str, tmp_path: Path) -> None:
    tensors = {f"{_LINEAR}.{part}": tensor(*found) for part, found in parts.items()}
    with pytest.raises(UnsupportedQuantization, match=f"already quantized: {name}.*{_LINEAR}"):
        source_quantization(described(tmp_path, tensors))


def test_the_experts_of_mxfp4_are_a_sign(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.experts.gate_up_proj_blocks": tensor("U8", 4, 96, 2, 16)}
    with pytest.raises(UnsupportedQuantization, match="MXFP4"):
        source_quantization(described(tmp_path, tensors))


def test_a_gguf_file_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedQuantization, match="GGUF") as refused:
        describe_directory(ModelFiles(tmp_path))
    assert "gguf_file" in refused.value.hint


@pytest.mark.parametrize(
    ("tensors", "config", "granularity", "block"),
    [
        (coded("F8_E4M3"), {}, "tensor", (96, 64)),
        (coded("F8_E4M3", 1), {}, "tensor", (96, 64)),
        (coded("I8", 1, 1), {}, "tensor", (96, 64)),
        (coded("I8", 96), {}, "channel", (1, 64)),
        (coded("F8_E5M2", 96, 1, part="weight_scale_inv"), {}, "channel", (1, 64)),
        (coded("F8_E4M3", 2, 1, shape=(192, 64), part="weight_scale_inv"), {}, "block", (128, 128)),
        (coded("F8_E4M3", 2, 3, shape=(200, 300), part="weight_scale_inv"), _BLOCKS, "block", (128, 128)),
        (coded("F8_E4M3", 2, 1, 3, 1, shape=(200, 300)), {}, "block", (128, 128)),
        (coded("F8_E4M3", 4, 5, shape=(100, 70)), _BLOCKS | {"weight_block_size": [32, 16]}, "block", (32, 16)),
    ],
)
def test_codes_with_scales_are_read(
    tensors: dict[str, Any], config: dict[str, Any], granularity: str, block: tuple[int, int], tmp_path: Path
) -> None:
    found = source_quantization(described(tmp_path, tensors, {"quantization_config": config} if config else None))
    assert found.kind is QuantizationKind.SCALED
    (weight,) = found.weights.values()
    assert (weight.granularity.value, weight.block) == (granularity, block)
    assert weight.scale in tensors


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({}, {"hf_quant_config.json": _MODELOPT}),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, {}),
        ({"quantization_config": {"quant_algo": "FP8", "config_groups": {"group_0": {}}}}, {}),
        ({"text_config": {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}}, {}),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, {}),
        ({"quantization_config": _BLOCKS}, {}),
        ({}, {}),
    ],
)
def test_scales_that_no_weight_needs_are_idle(config: dict[str, Any], files: dict[str, Any], tmp_path: Path) -> None:
    idle = {f"{_LINEAR}.input_scale": tensor("F32"), "model.layers.1.self_attn.k_proj.k_scale": tensor("F32")}
    stranger = {"model.layers.9.other.input_scale": tensor("F32")}
    found = source_quantization(described(tmp_path, coded("F8_E4M3") | idle | stranger, config, files))
    assert found.idle == idle.keys()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{_LINEAR}.weight": tensor("F8_E4M3", 96, 64)}, r"up_proj\.weight holds F8_E4M3 codes without their scales"),
        ({f"{_LINEAR}.weight": tensor("I8", 96, 64)}, "I8 codes without their scales"),
        ({"model.norm.weight": tensor("I32", 64)}, r"norm\.weight holds I32 codes without"),
        ({f"{_LINEAR}.bias": tensor("I8", 96)}, r"up_proj\.bias holds I8 codes without"),
        (coded("F8_E4M3") | {"model.layers.0.mlp.up_proj.weight": tensor("F8_E4M3", 96, 64)}, r"layers\.0.*without"),
        (coded("BF16", 96, 1), "weight_scale has no codes beside it"),
        ({f"{_LINEAR}.weight_scale_inv": tensor("F32")}, "weight_scale_inv has no codes"),
        (coded("F8_E4M3") | {f"{_LINEAR}.weight_scale_inv": tensor("F32")}, "both weight_scale and"),
        (coded("U8", 96, 1), "U8 codes"),
        (coded("F8_E4M3", 4, shape=(4, 96, 64)), r"shape \[4, 96, 64\]"),
        (coded("F8_E4M3", 1, 64), r"shape \[1, 64\]"),
        (coded("F8_E4M3", 3), r"shape \[3\]"),
        (coded("I8", 2, 1, shape=(192, 64)), r"shape \[2, 1\]"),
        (coded("F8_E4M3") | {f"{_LINEAR}.weight_scale": tensor("U8", 96, 2)}, "of the type U8"),
    ],
)
def test_codes_are_never_weights(tensors: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedQuantization, match=words):
        source_quantization(described(tmp_path, tensors))


@pytest.mark.parametrize(
    ("config", "files", "error", "words"),
    [
        ({}, {"hf_quant_config.json": _MODELOPT}, UnsupportedQuantization, "hf_quant_config.json says.*no weight"),
        ({"quantization_config": _BLOCKS}, {}, UnsupportedQuantization, "says that it is FP8, but no weight"),
        ({"quantization_config": "fp8"}, {}, InvalidModel, "not a JSON object"),
        ({"quantization_config": _BLOCKS | {"weight_block_size": [0, 128]}}, {}, InvalidModel, "weight_block_size"),
        ({"quantization_config": _BLOCKS | {"weight_block_size": 128}}, {}, InvalidModel, "weight_block_size"),
    ],
)
def test_a_description_has_to_fit_the_weights(
    config: dict[str, Any], files: dict[str, Any], error: type[EngineError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        source_quantization(described(tmp_path, {f"{_LINEAR}.weight": tensor("BF16", 96, 64)}, config, files))


@pytest.mark.parametrize(
    ("method", "dtype"), [("fp8", "I8"), ("fbgemm_fp8", "I8"), ("w8a8_int8", "F8_E4M3"), ("modelopt", "I8")]
)
def test_codes_of_another_type_than_the_method_has_are_refused(method: str, dtype: str, tmp_path: Path) -> None:
    section = {"quant_method": method, "quant_algo": "FP8"}
    with pytest.raises(UnsupportedQuantization, match=rf"but .*up_proj\.weight holds {dtype} codes"):
        source_quantization(described(tmp_path, coded(dtype, 96, 1), {"quantization_config": section}))


@pytest.mark.parametrize("place", ["targets", "ignore", "apply"])
@pytest.mark.parametrize("pattern", ["re:((", "re:(([a-z0-9_.])+)+\\1!", "re:" + "(a{1,99}){1,99}"])
def test_an_expression_that_linear_time_does_not_allow_is_refused(place: str, pattern: str, tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "targets": {"config_groups": {"group_0": {"targets": [pattern]}}},
        "ignore": {"ignore": ["lm_head", pattern]},
        "apply": {"transform_config": {"config_groups": {"R": {"apply": [{"targets": [pattern]}]}}}},
    }
    config = {"quantization_config": _COMPRESSED | sections[place]}
    with pytest.raises(UnsupportedQuantization, match="regular expression that can not be used") as refused:
        source_quantization(described(tmp_path, coded("I8", 96, 1), config))
    assert pattern not in f"{refused.value.detail} {refused.value.hint}"


def test_dense_weights_beside_scales_are_no_codes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedQuantization, match=r"up_proj\.weight holds BF16 values beside scales"):
        source_quantization(described(tmp_path, coded("BF16", 96, 1), {"quantization_config": _COMPRESSED}))


def test_a_checkpoint_that_an_older_release_called_frozen_is_told_how_to_be_read(tmp_path: Path) -> None:
    # transformers takes its codes for weights.
    config = {"quantization_config": _COMPRESSED | {"quantization_status": "frozen"}}
    with pytest.raises(UnsupportedQuantization, match="quantization_status 'frozen'") as refused:
        source_quantization(described(tmp_path, coded("I8", 96, 1), config))
    assert "set the quantization_status in config.json to 'compressed'" in refused.value.hint


def test_the_name_of_a_tensor_costs_no_more_time_than_its_length(tmp_path: Path) -> None:
    began = time.process_time()
    name = "a" + ".weight.quant_state." * 20_000 + "\nend"
    with pytest.raises(UnsupportedQuantization, match="bitsandbytes"):
        source_quantization(described(tmp_path, {name: tensor("U8", 4)}))
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": _COMPRESSED},
        {"compression_config": _COMPRESSED | {"quant_method": "sparseml"}},
        {"text_config": {"quantization_config": _COMPRESSED}},
    ],
)
def test_compressed_tensors_is_read_by_its_own_section(config: dict[str, Any], tmp_path: Path) -> None:
    description = described(tmp_path, coded("I8", 96, 1), config)
    for weights_only in (True, False):
        found = check_source(description, weights_only=weights_only)
        assert (found.kind, found.name) == (QuantizationKind.COMPRESSED_TENSORS, "compressed-tensors (int-quantized)")
        assert found.section["config_groups"] == {}
    left = without_quantization(description.config)
    assert "quantization_config" not in json.dumps(left)
    assert "compression_config" not in left


def _transform(location: str) -> dict[str, Any]:
    return {"config_groups": {"R": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": location}]}}}


@pytest.mark.parametrize(
    ("section", "quantry", "refused_if_weights_only", "refused_if_measured"),
    [
        ({"transform_config": _transform("input")}, None, True, False),
        ({"transform_config": _transform("weight_input")}, None, False, False),
        ({"kv_cache_scheme": {"num_bits": 8}}, None, False, True),
        ({}, {"online": {"a": {"transform": "a", "clip_ratio": 1.0}}}, True, False),
        ({}, {"online": {"a": {"hadamard_order": 64, "clip_ratio": 1.0}}}, True, False),
        ({}, {"online": {"a": {"transform": None, "clip_ratio": 0.9}}}, False, False),
        ({}, {"online": {}}, False, False),
    ],
)
def test_what_a_use_would_leave_out_is_refused(
    section: dict[str, Any], quantry: Any, refused_if_weights_only: bool, refused_if_measured: bool, tmp_path: Path
) -> None:
    config = {"quantization_config": _COMPRESSED | section} | ({} if quantry is None else {"quantry": quantry})
    description = described(tmp_path, {}, config)
    for weights_only, refused in ((True, refused_if_weights_only), (False, refused_if_measured)):
        if refused:
            with pytest.raises(UnsupportedQuantization):
                check_source(description, weights_only=weights_only)
        else:
            check_source(description, weights_only=weights_only)


_KEYS = (
    *("quant_method", "format", "config_groups", "transform_config", "sparsity_config", "kv_cache_scheme", "apply"),
    *("location", "online", "transforms", "tensors", "name", "quantization_status", "weight_block_size", "producer"),
    *("quantization_config", "quantization", "quant_algo", "bits", "g"),
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(("compressed-tensors", "fp8", "modelopt", "FP8"))
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(section=_JSON, quantry=_JSON, beside=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=3))
def test_whatever_a_file_holds_is_read_or_refused(section: Any, quantry: Any, beside: Any, tmp_path: Path) -> None:
    if isinstance(section, dict):
        section |= {"quant_method": section.get("quant_method", "compressed-tensors")}
    config = {"quantization_config": section, "quantry": quantry}
    description = described(tmp_path, coded("F8_E4M3"), config, {"hf_quant_config.json": beside})
    for weights_only in (True, False):
        kind = QuantizationKind.SCALED
        # Any other error would be one of the program.
        with suppress(EngineError):
            kind = check_source(description, weights_only=weights_only).kind
        assert kind is not QuantizationKind.NONE
