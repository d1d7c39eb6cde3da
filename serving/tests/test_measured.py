"""vLLM computes of every checkpoint what our loader computes, and the comparison sees where it does not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from serving.tests.cases import CASES
from serving.tests.conftest import Checkpoints, Vllm


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_served_as_it_was_measured(name: str, checkpoints: Checkpoints, vllm: Vllm) -> None:
    made = checkpoints[name]

    found = vllm.compare(name, made / "checkpoint", made / "reference.safetensors")

    vllm.figures[name] = found
    assert found.get("passed"), found
    assert found["method"] == CASES[name].method
    assert (found["linears"] > 0) == (CASES[name].policy is not None)


def _changed(made: Path, directory: Path, change: Any) -> Path:
    """Return a copy of a checkpoint of one file, whose tensors ``change`` has changed in place."""
    copy = directory / "checkpoint"
    shutil.copytree(made / "checkpoint", copy)
    path = copy / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return copy


def _flip_a_code(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.3.self_attn.o_proj.weight"][7, 11] ^= 0x40


def _flip_a_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.20.mlp.gate_proj.weight_scale"].view(torch.int32)[5] ^= 1 << 24


@pytest.mark.parametrize("flip", [_flip_a_code, _flip_a_scale])
def test_one_flipped_bit_is_seen(flip: Any, checkpoints: Checkpoints, vllm: Vllm, tmp_path: Path) -> None:
    made = checkpoints["w8a8"]

    found = vllm.compare("w8a8", _changed(made, tmp_path, flip), made / "reference.safetensors")

    assert not found["passed"], found
    assert "linear_error" in found["outside"]


def test_a_dropped_transform_is_seen(checkpoints: Checkpoints, vllm: Vllm, tmp_path: Path) -> None:
    made = checkpoints["hadamard-w4a4"]
    copy = tmp_path / "checkpoint"
    shutil.copytree(made / "checkpoint", copy)
    config = json.loads((copy / "config.json").read_text())
    dropped = config["quantry"]["online"].pop("model.layers.12.mlp.down_proj")
    (copy / "config.json").write_text(json.dumps(config))

    found = vllm.compare("hadamard-w4a4", copy, made / "reference.safetensors")

    assert dropped["transform"] is not None
    assert not found["passed"], found
    assert found["worst_linear"] == "model.layers.12.mlp.down_proj"


def test_another_grid_is_seen(checkpoints: Checkpoints, vllm: Vllm, tmp_path: Path) -> None:
    """The 127.5 of compressed-tensors' own forward is far enough from the 127 of engines."""
    made = checkpoints["w8a8"]
    reference = tmp_path / "reference.safetensors"
    with safe_open(made / "reference.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    from quant_engine.checkpoint import ActivationGrid, load  # noqa: PLC0415 -- transformers is slow to import

    name = "model.layers.5.mlp.down_proj"
    linear = load(made / "checkpoint", grid=ActivationGrid.COMPRESSED_TENSORS).get_submodule(name)
    with torch.no_grad():
        tensors[f"y.{name}"] = linear(tensors[f"x.{name}"])
    save_file(tensors, reference)

    found = vllm.compare("w8a8", made / "checkpoint", reference)

    assert not found["passed"], found
    assert found["worst_linear"] == name


def test_a_transform_that_is_not_in_the_files_is_refused(checkpoints: Checkpoints, vllm: Vllm, tmp_path: Path) -> None:
    made = checkpoints["kronecker-w8a8"]
    missing = "model.layers.4.mlp.down_proj.online.0.left_AA"

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[missing]

    found = vllm.compare("kronecker-w8a8", _changed(made, tmp_path, drop), made / "reference.safetensors")

    assert "down_proj.online.0.left_AA is not in the checkpoint" in found["error"]


def test_siblings_with_different_transforms_are_refused(checkpoints: Checkpoints, vllm: Vllm, tmp_path: Path) -> None:
    made = checkpoints["kronecker-w8a8"]
    copy = tmp_path / "checkpoint"
    shutil.copytree(made / "checkpoint", copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantry"]["online"]["model.layers.4.self_attn.v_proj"]["clip_ratio"] = 0.5
    (copy / "config.json").write_text(json.dumps(config))

    found = vllm.compare("kronecker-w8a8", copy, made / "reference.safetensors")

    assert "they do not all have the same transform and clip" in found["error"]
