"""Every scheme in both profiles: exact for the reader it is meant for, and a planted fault is found."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.checkpoint import ActivationGrid, load
from quant_engine.checkpoint.hashes import changed_files
from quant_engine.checkpoint.reload_check import PLAIN
from quant_engine.checkpoint.verify import compare, main, verify_in_fresh_process
from quant_engine.errors import UnsupportedPolicy, VerificationFailed
from quant_engine.hadamard import hadamard_order
from quant_engine.policy import NumberFormat, Output, Policy, TransformKind
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize.block_files import Plans
from quant_engine.stages.quantize.stage import quantize_stage
from quant_engine.transforms.primitives import Hadamard
from tests.integration.quant_engine.exports import config_of, every_linear, export, in_memory_logits, logits_of
from tests.integration.quant_engine.helpers import fixed_ids, open_run, random_plans
from tests.tiny_models import write_tiny_model


def _both(name: str, **weights: Any) -> dict[str, Any]:
    return {"weights": {"format": name} | weights, "activations": {"format": name}}


_GROUPS: Final = {"format": "int4", "granularity": "group"}
_BLOCK_0, _BLOCK_1 = r"re:.*layers\.0\..*", r"re:.*layers\.1\.mlp\..*"
SCHEMES: Final[dict[str, dict[str, Any]]] = {
    "w4a16-g64": {"weights": _GROUPS | {"group_size": 64}, "activations": {"format": "none"}},
    "w4a16-asymmetric": {
        "weights": _GROUPS | {"group_size": 16, "symmetric": False},
        "activations": {"format": "none"},
    },
    "w4a4": _both("int4", clip="mse"),
    "w4a4-g64": {
        "weights": _GROUPS | {"group_size": 64},
        "activations": {"format": "int4", "granularity": "group", "group_size": 64},
    },
    "w8a8": _both("int8"),
    "w8a8-asymmetric": {"weights": {"format": "int8"}, "activations": {"format": "int8", "symmetric": False}},
    "fp8": _both("fp8"),
    "nvfp4": _both("nvfp4", clip="mse"),
    "mxfp4": _both("mxfp4"),
    "nvfp4a16": _both("nvfp4") | {"activations": {"format": "none"}},
    "integers, floats and nothing": _both("int4")
    | {
        "overrides": [
            {"match": "o_proj"} | _both("int8"),
            {"match": _BLOCK_0} | _both("fp8"),
            {"match": _BLOCK_1} | _both("nvfp4"),
        ],
        "ignore": ["lm_head", r"re:.*layers\.1\.self_attn\.[qkv]_proj"],
    },
}
_PROFILES: Final = {"universal": TransformKind.SMOOTH, "rotated": TransformKind.SMOOTH_ROTATION}


def _policy(scheme: str, profile: str) -> Policy:
    return every_linear(**SCHEMES[scheme], online="none" if profile == "universal" else "all")


def _plans(run: Run, profile: str) -> Plans:
    """A peak for static scales, and block Hadamards as wide as the groups of the format."""
    plans = {}
    for name, plan in random_plans(run, _PROFILES[profile]).items():
        size = run.settings[name].weights.format.group_size
        online = tuple(Hadamard(order=hadamard_order(each.order, size)) for each in plan.online)  # type: ignore[attr-defined]  # all are Hadamards
        plans[name] = replace(plan, online=online, input_peak=30.0)
    return plans


def _exported(
    scheme: str, profile: str, directory: Path, architecture: str = "llama", **model: Any
) -> tuple[Path, Path, torch.Tensor]:
    """The checkpoint, a reference for its gate, and the in-memory model's logits."""
    source = write_tiny_model(directory / "model", architecture, intermediate=128, **model)
    run = open_run(source, _policy(scheme, profile), directory)
    run = replace(run, spec=replace(run.spec, output=Output.model_validate({"profile": profile})))
    plans = _plans(run, profile)
    quantized, checkpoint = export(run, plans)
    # The grid of the loader that the gate uses.
    grid = ActivationGrid.COMPRESSED_TENSORS if profile == "universal" else ActivationGrid.ENGINES
    logits = in_memory_logits(run, plans, quantized, grid).detach().contiguous()
    reference = directory / "reference.safetensors"
    threads = str(torch.get_num_threads())
    save_file({"input_ids": fixed_ids(), "logits": logits}, reference, metadata={"threads": threads})
    return checkpoint, reference, logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("profile", _PROFILES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gate_finds_no_difference(scheme: str, profile: str, architecture: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if architecture == "qwen3" else torch.float32
    checkpoint, reference, logits = _exported(scheme, profile, tmp_path, architecture, dtype=dtype)
    found = compare(checkpoint, reference)
    assert found.max_abs_difference == 0.0
    assert found.loader == (PLAIN if profile == "universal" else "quant_engine.checkpoint.load")
    if profile == "universal":
        assert torch.equal(logits_of(load(checkpoint, grid=ActivationGrid.COMPRESSED_TENSORS)), logits)
    assert bool(torch.isfinite(logits).all())
    assert config_of(checkpoint)["quantry"]["profile"] == profile
    # Readers run fp4 in bfloat16 alone, so that is what a float32 model becomes.
    assert logits.dtype == (torch.bfloat16 if "nvfp4" in json.dumps(SCHEMES[scheme]) or scheme == "mxfp4" else dtype)


@pytest.mark.parametrize("profile", _PROFILES)
def test_the_fresh_process_loads_a_universal_checkpoint_without_us(profile: str, tmp_path: Path) -> None:
    checkpoint, reference, _ = _exported("nvfp4", profile, tmp_path)
    found = verify_in_fresh_process(checkpoint, reference)
    assert found.max_abs_difference == 0.0
    assert {
        "python",
        "torch",
        "transformers",
        "compressed-tensors",
        "safetensors",
        "tokenizers",
    } <= found.versions.keys()
    assert found.loader == (PLAIN if profile == "universal" else "quant_engine.checkpoint.load")


@pytest.mark.parametrize(
    ("scheme", "profile"),
    [
        *((scheme, "universal") for scheme in ("w4a16-g64", "w8a8", "fp8", "nvfp4", "mxfp4")),
        *((scheme, "rotated") for scheme in ("w4a4", "w8a8", "nvfp4", "mxfp4")),
    ],
)
def test_the_gate_fails_a_flipped_byte_and_a_dropped_transform(scheme: str, profile: str, tmp_path: Path) -> None:
    """A byte of every part of a linear shows in the logits, and in the hash of its file."""
    checkpoint, reference, _ = _exported(scheme, profile, tmp_path, layers=1)
    shard, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    honest = shard.read_bytes()
    down, skipped = "model.layers.0.mlp.down_proj.", ("_shape", "_input.weight")
    parts = [name for name in load_file(shard) if name.startswith(down) and not name.endswith(skipped)]
    assert len(parts) == (4 if scheme == "nvfp4" else 2)
    for name in parts:
        shard.write_bytes(_with_flipped_byte(honest, name))
        assert main([str(checkpoint), str(reference)]) == 1, name
        assert changed_files(checkpoint) == ["model.safetensors"]
    shard.write_bytes(honest)
    assert changed_files(checkpoint) == []
    if profile == "rotated":
        content = config_of(checkpoint)
        del content["quantry"]["online"]["model.layers.0.mlp.down_proj"]
        config.write_text(json.dumps(content))
        assert main([str(checkpoint), str(reference)]) == 1
        assert changed_files(checkpoint) == ["config.json"]


def _with_flipped_byte(content: bytes, tensor: str) -> bytes:
    """The highest bit but one of the last byte: a code's, or of an exponent."""
    changed = bytearray(content)
    length = struct.unpack("<Q", changed[:8])[0]
    _, end = json.loads(changed[8 : 8 + length])[tensor]["data_offsets"]
    changed[8 + length + end - 1] ^= 0x40
    return bytes(changed)


def test_any_flipped_byte_of_any_shard_fails_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant_engine.checkpoint.export.write_checkpoint.__kwdefaults__", {"shard_bytes": 60_000})
    checkpoint, reference, _ = _exported("w4a4", "universal", tmp_path, "qwen3", layers=3)
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        honest = shard.read_bytes()
        for place in (len(honest) // 2, len(honest) - 1):
            changed = bytearray(honest)
            changed[place] ^= 0x01
            shard.write_bytes(changed)
            with pytest.raises(VerificationFailed, match=rf"not as exported: {shard.name}"):
                verify_in_fresh_process(checkpoint, reference)
        shard.write_bytes(honest)


@pytest.mark.parametrize("fields", [{"online": "all"}, {"activations": {"format": "int4", "clip_ratio": 0.9}}])
def test_the_engine_refuses_what_a_universal_checkpoint_has_no_place_for(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(**fields), tmp_path)
    run = replace(run, spec=replace(run.spec, output=Output(profile="universal")))
    kind = TransformKind.ROTATION if "online" in fields else TransformKind.SMOOTH
    with pytest.raises(UnsupportedPolicy, match="profile is 'universal', but in front of model"):
        quantize_stage(run, random_plans(run, kind), [], tmp_path, "-")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (_both("nvfp4"), r"nvfp4, whose groups of 16 do not divide the inputs of down_proj \(72, 2 layers\)"),
        (_both("mxfp4"), r"mxfp4, whose groups of 32 do not divide the inputs of down_proj \(72, 2 layers\)"),
        (
            {"weights": _GROUPS | {"group_size": 128}},
            r"128 does not divide the inputs of down_proj \(72.*Use 8, 72, 36, ",
        ),
        (
            {"weights": _GROUPS | {"group_size": 16}},
            r"16 does not divide the inputs of down_proj \(72.*Use 8, 72, 36, ",
        ),
    ],
)
def test_a_width_that_the_groups_do_not_divide_is_refused_at_once(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "model", intermediate=72)
    with pytest.raises(UnsupportedPolicy, match=message):
        open_run(model, every_linear(targets=["down_proj"], **fields), tmp_path)


def test_another_type_than_bfloat16_can_be_asked_for(tmp_path: Path) -> None:
    checkpoint, _, _ = _exported("nvfp4", "rotated", tmp_path, layers=1)
    models = [load(checkpoint), load(checkpoint, dtype=torch.float32)]
    assert logits_of(models[1]).dtype == torch.float32
    # At four bits a last bit moves an input by a whole step; without rounding the two are the same function.
    for module in (each for model in models for each in model.modules()):
        module.quantization_enabled = False  # type: ignore[assignment]  # compressed-tensors' own switch
    narrow, wide = (logits_of(model).float() for model in models)
    assert float((wide - narrow).norm() / wide.norm()) < 0.05


@pytest.mark.parametrize("scheme", ["w4a4", "nvfp4", "mxfp4"])
def test_four_bits_take_no_more_disk_than_their_parts(scheme: str, tmp_path: Path) -> None:
    """Codes, scales and dense tensors, counted from shapes; beside them only headers and what is online."""
    checkpoint, _, _ = _exported(scheme, "rotated", tmp_path, hidden=256, heads=8, dtype=torch.bfloat16)
    dense = load_file(tmp_path / "model" / "model.safetensors")
    expected = 0.0
    size = NumberFormat(SCHEMES[scheme]["weights"]["format"]).group_size
    for name, tensor in dense.items():
        if "_proj." not in name:
            expected += tensor.nbytes
            continue
        scales = 2 * tensor.shape[0] if size is None else tensor.numel() // size
        expected += tensor.numel() / 2 + scales + (8 if scheme == "nvfp4" else 0)
    actual = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert expected < actual <= 1.05 * expected
