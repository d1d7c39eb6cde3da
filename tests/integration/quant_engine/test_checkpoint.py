"""An exported checkpoint reloads to the in-memory model's bits, and says the truth to other readers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.transform import TransformConfig, apply_transform_config
from compressed_tensors.utils import match_named_modules
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant_engine.checkpoint import ActivationGrid, load
from quant_engine.models import RotatedSource, StreamedModel, hadamard_rotation
from quant_engine.policy import Policy, TransformKind
from quant_engine.transforms.primitives import Hadamard
from tests.integration.quant_engine.exports import (
    config_of,
    every_linear,
    export,
    in_memory_logits,
    logits_of,
    online_plans,
)
from tests.integration.quant_engine.helpers import fixed_ids, open_run, random_plans, streamed_logits
from tests.tiny_models import ARCHITECTURES, write_tiny_model

_INT8 = {"format": "int8"}
_FP8 = {"format": "fp8"}
_POLICIES = {
    "down_proj": every_linear(targets=["down_proj"]),
    "every_linear": every_linear(),
    "groups": every_linear(weights={"format": "int4", "granularity": "group", "group_size": 16}),
    "tensor": every_linear(weights={"format": "int6", "granularity": "tensor"}),
    "int3_weights_int8_activations": every_linear(weights={"format": "int3"}, activations=_INT8),
    "weights_only": every_linear(activations={"format": "none"}),
    "clipped": every_linear(activations={"format": "int4", "clip_ratio": 0.9}),
    "fp8": every_linear(weights=_FP8, activations=_FP8),
    "fp8_weights_only": every_linear(weights=_FP8 | {"granularity": "tensor"}, activations={"format": "none"}),
    "w8a8": every_linear(weights=_INT8, activations=_INT8),
    "w8a8_groups": every_linear(weights=_INT8 | {"granularity": "group", "group_size": 16}, activations=_INT8),
    "mixed": every_linear(
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
    quantized, checkpoint = export(run, plans)
    expected = in_memory_logits(run, plans, quantized)
    with torch.no_grad():
        assert torch.equal(load(checkpoint)(fixed_ids()).logits, expected)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("llama", torch.float32), ("llama", torch.float16), *((each, torch.bfloat16) for each in ARCHITECTURES)],
    ids=str,
)
def test_a_reload_is_exact_in_every_architecture_and_type(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", architecture, dtype=dtype), every_linear(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = export(run, plans)
    model = load(checkpoint)
    assert model.dtype == dtype
    logits = logits_of(model)
    assert torch.equal(logits, in_memory_logits(run, plans, quantized))
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("kronecker", torch.float16),
        ("block", torch.bfloat16),
        ("dense", torch.float32),
        ("composition", torch.bfloat16),
    ],
    ids=str,
)
def test_any_online_transform_reloads_exactly_and_is_refused_elsewhere(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", dtype=dtype), every_linear(), tmp_path)
    plans = online_plans(run, kind, clip_ratio=0.8)
    quantized, checkpoint = export(run, plans)
    loaded = logits_of(load(checkpoint))
    assert torch.equal(loaded, in_memory_logits(run, plans, quantized))
    without = {name: replace(plan, online=()) for name, plan in plans.items()}
    assert not torch.equal(loaded, in_memory_logits(run, without, quantized))
    with pytest.raises(ValidationError, match=r"only quant_engine\.checkpoint\.load"):
        AutoModelForCausalLM.from_pretrained(checkpoint)
    # Tools that only look at the directory still work.
    assert AutoTokenizer.from_pretrained(checkpoint)("class")["input_ids"]
    assert "our loader only" in (checkpoint / "README.md").read_text()


def test_a_transform_is_stored_once_for_the_linears_that_share_an_input(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", layers=1), every_linear(), tmp_path)
    plans = dict(online_plans(run, "dense"))
    (down,) = (site for site in run.sites if site.readers == ("model.layers.0.mlp.down_proj",))
    plans[down.name] = replace(plans[down.name], online=(Hadamard(order=96),))
    _, checkpoint = export(run, plans)
    tensors = load_file(checkpoint / "model.safetensors")
    stored = {name: value for name, value in tensors.items() if ".online." in name}
    assert sorted(stored) == [
        f"model.layers.0.{first}.online.0.matrix_DD"
        for first in ("mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj")
    ]
    assert all(value.dtype == torch.float32 for value in stored.values())
    # Nobody else could use the matrix of the Hadamard.
    assert not any("hadamard" in name for name in tensors)
    online = config_of(checkpoint)["quantry"]["online"]
    assert {online[f"model.layers.0.self_attn.{each}_proj"]["transform"] for each in "qkv"} == {
        "model.layers.0.self_attn.q_proj"
    }


_UNIVERSAL: dict[str, tuple[Policy, str, dict[str, torch.dtype]]] = {
    "w4a16": (
        every_linear(
            weights={"format": "int4", "granularity": "group", "group_size": 32}, activations={"format": "none"}
        ),
        "pack-quantized",
        {"weight_packed": torch.int32},
    ),
    "w8a16": (
        every_linear(weights=_INT8, activations={"format": "none"}),
        "pack-quantized",
        {"weight_packed": torch.int32},
    ),
    "w8a8": (every_linear(weights=_INT8, activations=_INT8), "int-quantized", {"weight": torch.int8}),
    "fp8": (every_linear(weights=_FP8, activations=_FP8), "float-quantized", {"weight": torch.float8_e4m3fn}),
    "mixed": (
        every_linear(
            weights={"format": "int4"},
            overrides=[{"match": r"re:.*down_proj", "weights": _INT8, "activations": _INT8}],
        ),
        "mixed-precision",
        {"weight": torch.int8},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("policy", "layout", "stored"), _UNIVERSAL.values(), ids=_UNIVERSAL)
def test_with_nothing_online_plain_from_pretrained_is_exact(
    policy: Policy, layout: str, stored: dict[str, torch.dtype], dtype: torch.dtype, tmp_path: Path
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", dtype=dtype), policy, tmp_path)
    plans = random_plans(run, TransformKind.SMOOTH)
    quantized, checkpoint = export(run, plans)
    expected = in_memory_logits(run, plans, quantized, ActivationGrid.COMPRESSED_TENSORS)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")), expected)
    assert torch.equal(logits_of(load(checkpoint, grid=ActivationGrid.COMPRESSED_TENSORS)), expected)
    served = logits_of(load(checkpoint))
    assert torch.equal(served, in_memory_logits(run, plans, quantized))
    # Only dynamic integers have two grids.
    assert torch.equal(served, expected) is not policy.activations.format.is_integer
    assert config_of(checkpoint)["quantization_config"]["format"] == layout
    tensors = load_file(checkpoint / "model.safetensors")
    down = {name.rpartition(".")[2]: value.dtype for name, value in tensors.items() if "0.mlp.down_proj" in name}
    assert {name: kind for name, kind in down.items() if name not in ("weight_scale", "weight_shape")} == stored
    assert "Plain compressed-tensors, with nothing online" in (checkpoint / "README.md").read_text()
    assert "from quant_engine" not in (checkpoint / "README.md").read_text()


def test_a_searched_clip_takes_the_place_of_the_policy_s_and_is_named(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(activations={"clip_ratio": 0.9}), tmp_path)
    plans = {name: replace(plan, clip_ratio=0.5) for name, plan in random_plans(run, TransformKind.SMOOTH).items()}
    quantized, checkpoint = export(run, plans)
    loaded = logits_of(load(checkpoint))
    assert torch.equal(loaded, in_memory_logits(run, plans, quantized))
    assert not torch.equal(loaded, logits_of(AutoModelForCausalLM.from_pretrained(checkpoint)))
    assert {each["clip_ratio"] for each in config_of(checkpoint)["quantry"]["online"].values()} == {0.5}
    assert "Other runtimes leave the clipping out" in (checkpoint / "README.md").read_text()


def test_a_rotated_residual_stream_unties_the_embeddings(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", dtype=torch.bfloat16), every_linear(), tmp_path)
    assert run.source.config["tie_word_embeddings"] is True
    source: Any = RotatedSource(run.source, hadamard_rotation(run.model.config, seed=0))
    run = replace(run, source=source, model=StreamedModel(source))
    plans = random_plans(run, TransformKind.NONE)
    quantized, checkpoint = export(run, plans)
    assert config_of(checkpoint)["tie_word_embeddings"] is False
    tensors = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(logits_of(load(checkpoint)), in_memory_logits(run, plans, quantized))
    expected = in_memory_logits(run, plans, quantized, ActivationGrid.COMPRESSED_TENSORS)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")), expected)


def test_the_quantized_model_comes_near_the_original_as_bits_are_added(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    errors = []
    for bits in (4, 6, 8):
        grid = {"format": f"int{bits}"}
        (tmp_path / str(bits)).mkdir()
        run = open_run(directory, every_linear(weights=grid, activations=grid), tmp_path / str(bits))
        _, checkpoint = export(run, random_plans(run))
        original = streamed_logits(run.model, fixed_ids())
        with torch.no_grad():
            logits = load(checkpoint)(fixed_ids()).logits
        errors.append(float((logits - original).norm() / original.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.2


def test_plain_from_pretrained_is_wrong_as_the_card_says(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(weights=_INT8, activations=_INT8), tmp_path)
    _, checkpoint = export(run, random_plans(run))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(checkpoint)(fixed_ids()).logits
        ours = load(checkpoint)(fixed_ids()).logits
    assert float((plain - ours).norm() / ours.norm()) > 0.1
    assert "Plain `from_pretrained` is wrong" in (checkpoint / "README.md").read_text()
    assert "Not SGLang" in (checkpoint / "README.md").read_text()


@pytest.mark.parametrize("intermediate", [96, 128], ids=["order 96 = 12·8, stored", "order 128, constructed"])
def test_the_transform_config_is_true_for_compressed_tensors(intermediate: int, tmp_path: Path) -> None:
    """Its own online half, with the stored matrices, reproduces our logits up to the order of a sum."""
    run = open_run(write_tiny_model(tmp_path / "model", intermediate=intermediate), every_linear(), tmp_path)
    _, checkpoint = export(run, random_plans(run))
    section = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["transform_config"]
    for group in section["config_groups"].values():
        group["apply"] = [each for each in group["apply"] if each["location"] == "input"]
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    apply_transform_config(theirs, TransformConfig.model_validate(section))
    stored = {name: value for name, value in load_file(checkpoint / "model.safetensors").items() if "hadamard" in name}
    assert len(stored) == (1 if intermediate == 96 else 0)
    theirs.load_state_dict(stored, strict=False)
    # At 4 bits a different last bit moves a code by a whole step; without rounding the two are the same function.
    ours = load(checkpoint, grid=ActivationGrid.COMPRESSED_TENSORS)
    for module in [*theirs.modules(), *ours.modules()]:
        module.quantization_enabled = False
    with torch.no_grad():
        expected, found = ours(fixed_ids()).logits, theirs(fixed_ids()).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_schemes_and_ignore_cover_every_linear_once(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", layers=3), _POLICIES["mixed"], tmp_path)
    _, checkpoint = export(run, random_plans(run))
    config = config_of(checkpoint)["quantization_config"]
    assert config["format"] == "mixed-precision"
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


def test_shards_an_index_and_the_copied_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant_engine.checkpoint.export.write_checkpoint.__kwdefaults__", {"shard_bytes": 60_000})
    run = open_run(write_tiny_model(tmp_path / "model", layers=4), every_linear(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = export(run, plans)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert (checkpoint / "generation_config.json").is_file()
    assert AutoTokenizer.from_pretrained(checkpoint)("class")["input_ids"]
    with torch.no_grad():
        assert torch.equal(load(checkpoint)(fixed_ids()).logits, in_memory_logits(run, plans, quantized))
