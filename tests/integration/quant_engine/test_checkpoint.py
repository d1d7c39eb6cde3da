"""An exported checkpoint reloads to the in-memory model's bits, and says the truth to other readers."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.transform import TransformConfig, apply_transform_config
from compressed_tensors.utils import match_named_modules
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant_engine.checkpoint import load
from quant_engine.checkpoint.verify import main, verify_in_fresh_process
from quant_engine.errors import ModelNotFound, UnsafeCheckpoint, VerificationFailed
from quant_engine.models import StreamedModel
from quant_engine.policy import Policy
from quant_engine.stages.context import Run
from quant_engine.stages.export import CHECKPOINT, export_stage, verify_stage
from quant_engine.stages.files import run_stage
from quant_engine.stages.quantize import Plans, block_linears, quantize_stage, quantized_reader
from tests.integration.quant_engine.helpers import ALL_LINEARS, fixed_ids, open_run, random_plans, streamed_logits
from tests.tiny_models import ARCHITECTURES, write_tiny_model


def _export(run: Run, plans: Plans) -> tuple[Path, Path]:
    """The quantized blocks and the checkpoint made of them."""
    quantized = run_stage(quantize_stage(run, plans, "-"), run.work_dir, run.observer)
    exported = run_stage(export_stage(run, quantized, plans, "-"), run.work_dir, run.observer)
    return quantized, exported / CHECKPOINT


def _in_memory_logits(run: Run, plans: Plans, quantized: Path) -> torch.Tensor:
    model = StreamedModel(run.source, dtype=run.source.dtype)
    return streamed_logits(model, fixed_ids(), *quantized_reader(quantized, block_linears(run, plans), model))


def _policy(**fields: Any) -> Policy:
    return Policy.model_validate({"targets": ALL_LINEARS} | fields)


_INT8 = {"format": "int8"}
_POLICIES = {
    "down_proj": _policy(targets=["down_proj"]),
    "every_linear": _policy(),
    "groups": _policy(weights={"format": "int4", "granularity": "group", "group_size": 16}),
    "tensor": _policy(weights={"format": "int6", "granularity": "tensor"}),
    "int3_weights_int8_activations": _policy(weights={"format": "int3"}, activations=_INT8),
    "weights_only": _policy(activations={"format": "none"}),
    "clipped": _policy(activations={"format": "int4", "clip_ratio": 0.9}),
    "mixed": _policy(
        overrides=[
            {"match": r"re:.*layers\.0\..*", "weights": _INT8, "activations": _INT8},
            {"match": r"re:.*layers\.1\.self_attn\..*", "weights": {"format": "none"}},
        ]
    ),
}


@pytest.mark.parametrize("policy", _POLICIES.values(), ids=_POLICIES)
def test_a_reload_is_exact(policy: Policy, tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), policy, tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = _export(run, plans)
    expected = _in_memory_logits(run, plans, quantized)
    with torch.no_grad():
        assert torch.equal(load(checkpoint)(fixed_ids()).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_reload_is_exact_in_every_architecture_and_type(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", architecture, dtype=dtype), _policy(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = _export(run, plans)
    model = load(checkpoint)
    assert model.dtype == dtype
    with torch.no_grad():
        logits = model(fixed_ids()).logits
    assert torch.equal(logits, _in_memory_logits(run, plans, quantized))
    assert bool(torch.isfinite(logits).all())


def test_the_quantized_model_comes_near_the_original_as_bits_are_added(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    errors = []
    for bits in (4, 6, 8):
        grid = {"format": f"int{bits}"}
        (tmp_path / str(bits)).mkdir()
        run = open_run(directory, _policy(weights=grid, activations=grid), tmp_path / str(bits))
        _, checkpoint = _export(run, random_plans(run))
        original = streamed_logits(run.model, fixed_ids())
        with torch.no_grad():
            logits = load(checkpoint)(fixed_ids()).logits
        errors.append(float((logits - original).norm() / original.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.2


def test_plain_from_pretrained_is_wrong_as_the_card_says(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), _policy(weights=_INT8, activations=_INT8), tmp_path)
    _, checkpoint = _export(run, random_plans(run))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(checkpoint)(fixed_ids()).logits
        ours = load(checkpoint)(fixed_ids()).logits
    assert float((plain - ours).norm() / ours.norm()) > 0.1
    assert "Plain `from_pretrained` is wrong" in (checkpoint / "README.md").read_text()
    assert "Not SGLang" in (checkpoint / "README.md").read_text()


@pytest.mark.parametrize("intermediate", [96, 128], ids=["order 96 = 12·8, stored", "order 128, constructed"])
def test_the_transform_config_is_true_for_compressed_tensors(intermediate: int, tmp_path: Path) -> None:
    """Its own online half, with the stored matrices, reproduces our logits up to the order of a sum."""
    run = open_run(write_tiny_model(tmp_path / "model", intermediate=intermediate), _policy(), tmp_path)
    _, checkpoint = _export(run, random_plans(run))
    section = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["transform_config"]
    for group in section["config_groups"].values():
        group["apply"] = [each for each in group["apply"] if each["location"] == "input"]
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    apply_transform_config(theirs, TransformConfig.model_validate(section))
    stored = {name: value for name, value in load_file(checkpoint / "model.safetensors").items() if "hadamard" in name}
    assert len(stored) == (1 if intermediate == 96 else 0)
    theirs.load_state_dict(stored, strict=False)
    # At 4 bits a different last bit moves a code by a whole step; without rounding the two are the same function.
    ours = load(checkpoint)
    for module in [*theirs.modules(), *ours.modules()]:
        module.quantization_enabled = False
    with torch.no_grad():
        expected, found = ours(fixed_ids()).logits, theirs(fixed_ids()).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_schemes_and_ignore_cover_every_linear_once(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", layers=3), _POLICIES["mixed"], tmp_path)
    _, checkpoint = _export(run, random_plans(run))
    config = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"
    parsed = QuantizationConfig.model_validate(
        {k: v for k, v in config.items() if k in QuantizationConfig.model_fields}
    )
    model = AutoModelForCausalLM.from_config(run.model.config)
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    matched = [
        {name for name, _ in match_named_modules(model, group.targets, [])} for group in parsed.config_groups.values()
    ]
    ignored = {name for name, _ in match_named_modules(model, parsed.ignore, [])}
    assert sum(len(names) for names in matched) + len(ignored) == len(linears)
    assert set().union(*matched) | ignored == linears
    bits = {group.weights.num_bits: names for group, names in zip(parsed.config_groups.values(), matched, strict=True)}
    assert all("layers.0" in name for name in bits[8])
    assert "lm_head" in ignored
    assert "model.layers.1.self_attn.q_proj" in ignored


def test_shards_an_index_and_the_companions_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant_engine.checkpoint.export.write_checkpoint.__kwdefaults__", {"shard_bytes": 60_000})
    run = open_run(write_tiny_model(tmp_path / "model", layers=4), _policy(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = _export(run, plans)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert (checkpoint / "generation_config.json").is_file()
    assert AutoTokenizer.from_pretrained(checkpoint)("class")["input_ids"]
    with torch.no_grad():
        assert torch.equal(load(checkpoint)(fixed_ids()).logits, _in_memory_logits(run, plans, quantized))


def test_the_gate_passes_an_honest_checkpoint_and_fails_one_flipped_byte(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), _policy(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = _export(run, plans)
    verified = run_stage(verify_stage(run, quantized, checkpoint.parent, plans, "-"), run.work_dir, run.observer)
    found = json.loads((verified / "verification.json").read_text())
    assert found["max_abs_difference"] == 0.0
    assert found["versions"]["compressed-tensors"]
    shard = checkpoint / "model.safetensors"
    honest = shard.read_bytes()
    _flip_a_byte(shard, "model.layers.1.mlp.down_proj.weight_packed")
    with pytest.raises(VerificationFailed, match=r"max \|Δ logits\| ="):
        verify_in_fresh_process(checkpoint, verified / "reference.safetensors")
    # A matrix that only other runtimes read.
    shard.write_bytes(honest)
    _flip_a_byte(shard, "model.layers.0.mlp.down_proj.hadamard96_input.weight")
    assert main([str(checkpoint), str(verified / "reference.safetensors")]) == 2


def _flip_a_byte(shard: Path, tensor: str) -> None:
    content = bytearray(shard.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    begin, _ = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    content[8 + length + begin + 9] ^= 0x80
    shard.write_bytes(content)


def test_the_gate_fails_a_truncated_shard(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), _policy(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = _export(run, plans)
    shard = checkpoint / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-16])
    with pytest.raises(VerificationFailed, match="failed the gate"):
        run_stage(verify_stage(run, quantized, checkpoint.parent, plans, "-"), run.work_dir, run.observer)
    assert not (run.work_dir / "verify").exists()


def test_loading_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nothing")
    with pytest.raises(UnsafeCheckpoint, match="no quantry section"):
        load(write_tiny_model(tmp_path / "dense"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model.layers.9.mlp.down_proj": {"hadamard_order": 96, "clip_ratio": 1.0}}, "which the model does not have"),
        ({"model.layers.0.mlp.down_proj": {"hadamard_order": 7, "clip_ratio": 1.0}}, "order 7 does not fit"),
        ({"model.layers.0.mlp.down_proj": {"hadamard_order": 96}}, "malformed"),
    ],
)
def test_a_quantry_section_that_does_not_fit_is_refused(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), _policy(), tmp_path)
    _, checkpoint = _export(run, random_plans(run))
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantry"]["online"] = entry
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeCheckpoint, match=message):
        load(checkpoint)
