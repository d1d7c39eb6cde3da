"""What the gate fails and the loader refuses: flipped bytes, truncated shards, sections that do not fit."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.checkpoint import load
from quant_engine.checkpoint.verify import main, verify_in_fresh_process
from quant_engine.errors import InvalidModel, ModelNotFound, VerificationFailed
from quant_engine.stages.context.run import Run
from quant_engine.stages.export import verify_stage
from quant_engine.stages.quantize.block_files import Plans
from quant_engine.stages.stage import run_stage
from tests.integration.quant_engine.exports import config_of, every_linear, export, logits_of, online_plans
from tests.integration.quant_engine.helpers import open_run, random_plans
from tests.tiny_models import write_tiny_model
from tests.unit.quant_engine.definitions import order_of


def test_the_gate_passes_an_honest_checkpoint_and_fails_one_flipped_byte(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = export(run, plans)
    verified = run_stage(verify_stage(run, quantized, checkpoint.parent, plans, "-"), run.work_dir, run.observer)
    found = json.loads((verified / "verification.json").read_text())
    assert found["max_abs_difference"] == 0.0
    assert found["versions"]["compressed-tensors"]
    shard = checkpoint / "model.safetensors"
    honest = shard.read_bytes()
    _flip_a_byte(shard, "model.layers.1.mlp.down_proj.weight_packed")
    with pytest.raises(VerificationFailed, match=r"not as exported: model\.safetensors"):
        verify_in_fresh_process(checkpoint, verified / "reference.safetensors")
    assert main([str(checkpoint), str(verified / "reference.safetensors")]) == 1
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
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(), tmp_path)
    plans = random_plans(run)
    quantized, checkpoint = export(run, plans)
    shard = checkpoint / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-16])
    with pytest.raises(VerificationFailed, match="failed the gate"):
        run_stage(verify_stage(run, quantized, checkpoint.parent, plans, "-"), run.work_dir, run.observer)
    assert not (run.work_dir / "verify").exists()


def test_loading_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nothing")
    with pytest.raises(InvalidModel, match="no quantry section"):
        load(write_tiny_model(tmp_path / "dense"))


def test_a_checkpoint_of_the_first_version_still_loads(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), every_linear(activations={"clip_ratio": 0.9}), tmp_path)
    _, checkpoint = export(run, random_plans(run))
    expected = logits_of(load(checkpoint))
    online = {
        site_reader: {"hadamard_order": order_of(plan), "clip_ratio": 0.9}
        for site in run.sites
        for plan in [random_plans(run)[site.name]]
        for site_reader in site.readers
    }
    _edit(checkpoint, ["quantry"], {"format_version": 1, "profile": "rotated", "online": online})
    assert torch.equal(logits_of(load(checkpoint)), expected)


def _edit(checkpoint: Path, place: Sequence[Any], value: Any) -> None:
    """Put ``value`` at ``place`` of config.json; None removes what is there."""
    config = config_of(checkpoint)
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
    run = open_run(write_tiny_model(directory / "model", layers=1), every_linear(), directory)
    plans = online_plans(run, "kronecker")
    return run, plans, *export(run, plans)


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
        (("quantry", "transforms", _DOWN), _HADAMARD_7, "order is 7, of which no Hadamard matrix"),
        (("quantry", "transforms", _DOWN), [{"name": "hadamard", "order": 64}], "order 64 does not fit the 96 inputs"),
        (("quantry", "transforms", _DOWN), "kronecker", "malformed"),
        (("quantry", "transforms", _DOWN, 0, "name"), "pickle", "primitives are"),
        ((*_DOWN_TENSORS, "left_AA"), None, "has the tensors"),
        ((*_DOWN_TENSORS, "left_AA", "name"), f"{_DOWN}.online.9.left_AA", "not where it has to be"),
        ((*_DOWN_TENSORS, "left_AA", "name"), "../../elsewhere", "not where it has to be"),
        ((*_DOWN_TENSORS, "left_AA", "name"), "model.norm.weight", "not where it has to be"),
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
        with pytest.raises(InvalidModel, match=message):
            load(kronecker_checkpoint)
    finally:
        path.write_text(honest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda matrix: torch.full_like(matrix, torch.nan), "is not finite"),
        (lambda matrix: matrix.double(), "float64, none of bfloat16, float32"),
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
        with pytest.raises(InvalidModel, match=message):
            load(kronecker_checkpoint)
    finally:
        path.write_bytes(honest)
