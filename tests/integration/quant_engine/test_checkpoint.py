"""An exported checkpoint reloads to the in-memory model's bits, and says the truth to other readers."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.transform import TransformConfig, apply_transform_config
from compressed_tensors.utils import match_named_modules
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant_engine.checkpoint import load
from quant_engine.checkpoint.verify import main, verify_in_fresh_process
from quant_engine.errors import ModelNotFound, UnsafeCheckpoint, VerificationFailed
from quant_engine.models import RotatedSource, StreamedModel, hadamard_rotation
from quant_engine.policy import Policy, TransformKind
from quant_engine.stages.blocks import Plans, block_linears, quantized_reader
from quant_engine.stages.context import Run
from quant_engine.stages.export import CHECKPOINT, export_stage, verify_stage
from quant_engine.stages.files import run_stage
from quant_engine.stages.quantize import quantize_stage
from quant_engine.transforms.primitives import Block, Dense, Hadamard, Kronecker, Permutation, Primitive
from tests.integration.quant_engine.helpers import fixed_ids, open_run, random_plans, streamed_logits
from tests.tiny_models import ARCHITECTURES, write_tiny_model


def _export(run: Run, plans: Plans) -> tuple[Path, Path]:
    """The quantized blocks and the checkpoint made of them."""
    quantized = run_stage(quantize_stage(run, plans, [], run.work_dir, "-"), run.work_dir, run.observer)
    exported = run_stage(export_stage(run, quantized, plans, "-"), run.work_dir, run.observer)
    return quantized, exported / CHECKPOINT


def _in_memory_logits(run: Run, plans: Plans, quantized: Path) -> torch.Tensor:
    model = StreamedModel(run.source, dtype=run.source.dtype)
    return streamed_logits(model, fixed_ids(), *quantized_reader(quantized, block_linears(run, plans), model))


def _policy(**fields: Any) -> Policy:
    return Policy.model_validate({"targets": [r"re:.*_proj"]} | fields)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(fixed_ids()).logits
        return logits


def _config(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    return content


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


_ONLINE: dict[str, Callable[[int], tuple[Primitive, ...]]] = {
    "kronecker": lambda width: (Kronecker(left_AA=_random(8, 8), right_BB=_random(width // 8, width // 8)),),
    "block": lambda width: (Block(blocks_NKK=_random(width // 16, 16, 16)),),
    "dense": lambda width: (Dense(matrix_DD=_random(width, width).double()),),
    "composition": lambda width: (
        Block(blocks_NKK=_random(width // 8, 8, 8)),
        Permutation(index_D=torch.randperm(width, generator=torch.Generator().manual_seed(2))),
        Hadamard(order=16),
    ),
}


def _online_plans(run: Run, kind: str, **fields: Any) -> Plans:
    plans = random_plans(run, TransformKind.SMOOTH)
    return {site.name: replace(plans[site.name], online=_ONLINE[kind](site.features), **fields) for site in run.sites}


_INT8 = {"format": "int8"}
_FP8 = {"format": "fp8"}
_POLICIES = {
    "down_proj": _policy(targets=["down_proj"]),
    "every_linear": _policy(),
    "groups": _policy(weights={"format": "int4", "granularity": "group", "group_size": 16}),
    "tensor": _policy(weights={"format": "int6", "granularity": "tensor"}),
    "int3_weights_int8_activations": _policy(weights={"format": "int3"}, activations=_INT8),
    "weights_only": _policy(activations={"format": "none"}),
    "clipped": _policy(activations={"format": "int4", "clip_ratio": 0.9}),
    "fp8": _policy(weights=_FP8, activations=_FP8),
    "fp8_weights_only": _policy(weights=_FP8 | {"granularity": "tensor"}, activations={"format": "none"}),
    "w8a8": _policy(weights=_INT8, activations=_INT8),
    "w8a8_groups": _policy(weights=_INT8 | {"granularity": "group", "group_size": 16}, activations=_INT8),
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


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("llama", torch.float32), ("llama", torch.float16), *((each, torch.bfloat16) for each in ARCHITECTURES)],
    ids=str,
)
def test_a_reload_is_exact_in_every_architecture_and_type(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", architecture, dtype=dtype), _policy(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = _export(run, plans)
    model = load(checkpoint)
    assert model.dtype == dtype
    logits = _logits(model)
    assert torch.equal(logits, _in_memory_logits(run, plans, quantized))
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
    run = open_run(write_tiny_model(tmp_path / "model", dtype=dtype), _policy(), tmp_path)
    plans = _online_plans(run, kind, clip_ratio=0.8)
    quantized, checkpoint = _export(run, plans)
    loaded = _logits(load(checkpoint))
    assert torch.equal(loaded, _in_memory_logits(run, plans, quantized))
    without = {name: replace(plan, online=()) for name, plan in plans.items()}
    assert not torch.equal(loaded, _in_memory_logits(run, without, quantized))
    with pytest.raises(ValidationError, match=r"only quant_engine\.checkpoint\.load"):
        AutoModelForCausalLM.from_pretrained(checkpoint)
    # Tools that only look at the directory still work.
    assert AutoTokenizer.from_pretrained(checkpoint)("class")["input_ids"]
    assert "our loader only" in (checkpoint / "README.md").read_text()


def test_a_transform_is_stored_once_for_the_linears_that_share_an_input(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", layers=1), _policy(), tmp_path)
    plans = dict(_online_plans(run, "dense"))
    (down,) = (site for site in run.sites if site.readers == ("model.layers.0.mlp.down_proj",))
    plans[down.name] = replace(plans[down.name], online=(Hadamard(order=96),))
    _, checkpoint = _export(run, plans)
    tensors = load_file(checkpoint / "model.safetensors")
    stored = {name: value for name, value in tensors.items() if ".online." in name}
    assert sorted(stored) == [
        f"model.layers.0.{first}.online.0.matrix_DD"
        for first in ("mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj")
    ]
    assert all(value.dtype == torch.float32 for value in stored.values())
    # Nobody else could use the matrix of the Hadamard.
    assert not any("hadamard" in name for name in tensors)
    online = _config(checkpoint)["quantry"]["online"]
    assert {online[f"model.layers.0.self_attn.{each}_proj"]["transform"] for each in "qkv"} == {
        "model.layers.0.self_attn.q_proj"
    }


_UNIVERSAL: dict[str, tuple[Policy, str, dict[str, torch.dtype]]] = {
    "w4a16": (
        _policy(weights={"format": "int4", "granularity": "group", "group_size": 32}, activations={"format": "none"}),
        "pack-quantized",
        {"weight_packed": torch.int32},
    ),
    "w8a16": (_policy(weights=_INT8, activations={"format": "none"}), "pack-quantized", {"weight_packed": torch.int32}),
    "w8a8": (_policy(weights=_INT8, activations=_INT8), "int-quantized", {"weight": torch.int8}),
    "fp8": (_policy(weights=_FP8, activations=_FP8), "float-quantized", {"weight": torch.float8_e4m3fn}),
    "mixed": (
        _policy(
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
    quantized, checkpoint = _export(run, plans)
    expected = _in_memory_logits(run, plans, quantized)
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")), expected)
    assert torch.equal(_logits(load(checkpoint)), expected)
    assert _config(checkpoint)["quantization_config"]["format"] == layout
    tensors = load_file(checkpoint / "model.safetensors")
    down = {name.rpartition(".")[2]: value.dtype for name, value in tensors.items() if "0.mlp.down_proj" in name}
    assert {name: kind for name, kind in down.items() if name not in ("weight_scale", "weight_shape")} == stored
    assert "loads anywhere" in (checkpoint / "README.md").read_text()
    assert "from quant_engine" not in (checkpoint / "README.md").read_text()


def test_a_searched_clip_takes_the_place_of_the_policy_s_and_is_named(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), _policy(activations={"clip_ratio": 0.9}), tmp_path)
    plans = {name: replace(plan, clip_ratio=0.5) for name, plan in random_plans(run, TransformKind.SMOOTH).items()}
    quantized, checkpoint = _export(run, plans)
    loaded = _logits(load(checkpoint))
    assert torch.equal(loaded, _in_memory_logits(run, plans, quantized))
    assert not torch.equal(loaded, _logits(AutoModelForCausalLM.from_pretrained(checkpoint)))
    assert {each["clip_ratio"] for each in _config(checkpoint)["quantry"]["online"].values()} == {0.5}
    assert "Other runtimes leave the clipping out" in (checkpoint / "README.md").read_text()


def test_a_rotated_residual_stream_unties_the_embeddings(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", dtype=torch.bfloat16), _policy(), tmp_path)
    assert run.source.config["tie_word_embeddings"] is True
    source: Any = RotatedSource(run.source, hadamard_rotation(run.model.config, seed=0))
    run = replace(run, source=source, model=StreamedModel(source))
    plans = random_plans(run, TransformKind.NONE)
    quantized, checkpoint = _export(run, plans)
    assert _config(checkpoint)["tie_word_embeddings"] is False
    tensors = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    expected = _in_memory_logits(run, plans, quantized)
    assert torch.equal(_logits(load(checkpoint)), expected)
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")), expected)


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
    config = _config(checkpoint)["quantization_config"]
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


def test_the_gate_fails_a_flipped_byte_of_a_transform(kronecker_run: tuple[Run, Plans, Path, Path]) -> None:
    run, plans, quantized, checkpoint = kronecker_run
    verified = run_stage(verify_stage(run, quantized, checkpoint.parent, plans, "-"), run.work_dir, run.observer)
    reference = str(verified / "reference.safetensors")
    shard = checkpoint / "model.safetensors"
    honest = shard.read_bytes()
    try:
        _flip_a_byte(shard, f"{_DOWN}.online.0.left_AA")
        assert main([str(checkpoint), reference]) == 1
    finally:
        shard.write_bytes(honest)
    assert main([str(checkpoint), reference]) == 0


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


def test_a_checkpoint_of_the_first_version_still_loads(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), _policy(activations={"clip_ratio": 0.9}), tmp_path)
    _, checkpoint = _export(run, random_plans(run))
    expected = _logits(load(checkpoint))
    online = {
        site_reader: {"hadamard_order": plan.order, "clip_ratio": 0.9}
        for site in run.sites
        for plan in [random_plans(run)[site.name]]
        for site_reader in site.readers
    }
    _edit(checkpoint, ["quantry"], {"format_version": 1, "profile": "rotated", "online": online})
    assert torch.equal(_logits(load(checkpoint)), expected)


def _edit(checkpoint: Path, place: Sequence[Any], value: Any) -> None:
    """Put ``value`` at ``place`` of config.json; None removes what is there."""
    config = _config(checkpoint)
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    (checkpoint / "config.json").write_text(json.dumps(config))


_DOWN = "model.layers.0.mlp.down_proj"
_DOWN_TENSORS = ("quantry", "transforms", _DOWN, 0, "tensors")
_HADAMARD_7 = [{"name": "hadamard", "order": 7}]


@pytest.fixture(scope="module")
def kronecker_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Plans, Path, Path]:
    directory = tmp_path_factory.mktemp("kronecker")
    run = open_run(write_tiny_model(directory / "model", layers=1), _policy(), directory)
    plans = _online_plans(run, "kronecker")
    return run, plans, *_export(run, plans)


@pytest.fixture
def kronecker_checkpoint(kronecker_run: tuple[Run, Plans, Path, Path]) -> Path:
    return kronecker_run[-1]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("quantry", "format_version"), 3, "no quantry section of format version 1 or 2"),
        (("quantry", "format_version"), [2], "no quantry section of format version 1 or 2"),
        (
            ("quantry", "online", "model.layers.9.mlp.down_proj"),
            {"transform": _DOWN, "clip_ratio": 1.0},
            "does not have",
        ),
        (("quantry", "online", "model.norm"), {"transform": _DOWN, "clip_ratio": 1.0}, "is no linear"),
        (
            ("quantry", "online", "model.layers.0.mlp.up_proj", "transform"),
            _DOWN,
            "width 96 does not fit the 64 inputs",
        ),
        (("quantry", "online", _DOWN, "transform"), "elsewhere", "malformed"),
        (("quantry", "online", _DOWN, "clip_ratio"), None, "malformed"),
        (("quantry", "online", _DOWN, "clip_ratio"), float("nan"), "clip_ratio is nan"),
        (("quantry", "online", _DOWN, "clip_ratio"), 1.5, "clip_ratio is 1.5"),
        (("quantry", "transforms", _DOWN), _HADAMARD_7, "order 7 does not fit"),
        (("quantry", "transforms", _DOWN), [{"name": "hadamard", "order": 64}], "order 64 does not fit the 96 inputs"),
        (("quantry", "transforms", _DOWN), "kronecker", "malformed"),
        (("quantry", "transforms", _DOWN, 0, "name"), "pickle", "primitives are"),
        ((*_DOWN_TENSORS, "left_AA"), None, "has the tensors"),
        ((*_DOWN_TENSORS, "left_AA", "name"), f"{_DOWN}.online.9.left_AA", "no file holds the tensor"),
        ((*_DOWN_TENSORS, "left_AA", "name"), "../../elsewhere", "no file holds the tensor"),
        ((*_DOWN_TENSORS, "left_AA", "name"), "model.norm.weight", "has the shape"),
        ((*_DOWN_TENSORS, "left_AA", "shape"), [4, 16], "has the shape"),
        (("quantization_config", "config_groups"), None, "quantization_config of config.json is malformed"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(
    place: Sequence[Any], value: Any, message: str, kronecker_checkpoint: Path
) -> None:
    path = kronecker_checkpoint / "config.json"
    honest = path.read_text()
    try:
        _edit(kronecker_checkpoint, place, value)
        with pytest.raises(UnsafeCheckpoint, match=message):
            load(kronecker_checkpoint)
    finally:
        path.write_text(honest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda matrix: torch.full_like(matrix, torch.nan), "is not finite"),
        (lambda matrix: matrix.double(), "float64, not float32"),
        (lambda matrix: matrix.to(torch.int64), "is not valid"),
        (lambda matrix: matrix[:-1].contiguous(), "has the shape"),
    ],
)
def test_a_stored_transform_that_does_not_fit_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, kronecker_checkpoint: Path
) -> None:
    path = kronecker_checkpoint / "model.safetensors"
    honest = path.read_bytes()
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    tensors[f"{_DOWN}.online.0.right_BB"] = change(tensors[f"{_DOWN}.online.0.right_BB"])
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(UnsafeCheckpoint, match=message):
            load(kronecker_checkpoint)
    finally:
        path.write_bytes(honest)
