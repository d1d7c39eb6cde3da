"""Plain transformers is asked for the original's logits; a run stops where its own reading parts from them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.errors import (
    EngineError,
    InvalidModel,
    ModelMisread,
    NumericalInstability,
    UnsupportedArchitecture,
)
from quant_engine.models import ARCHITECTURES as SUPPORTED
from quant_engine.models import CheckpointSource, ask_transformers
from tests.tiny_models import ARCHITECTURES, write_tiny_model

PLENTY, LITTLE = 2**40, 1000


def ask(source: CheckpointSource, available: int = PLENTY) -> Any:
    return ask_transformers(source, available=available, scratch=source.directory)


def edit(directory: Path, **tensors: Tensor) -> CheckpointSource:
    state = load_file(directory / "model.safetensors")
    save_file(state | tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return CheckpointSource(directory)


def configure(directory: Path, **fields: object) -> CheckpointSource:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))
    return CheckpointSource(directory)


@dataclass(frozen=True)
class Misreading(CheckpointSource):
    """A source that reads one tensor wrongly, by as much as a dropped row would change it."""

    wrong: str = ""

    def read(self, names: Any, *, dtype: Any, device: Any = "cpu") -> dict[str, Tensor]:
        read = super().read(names, dtype=dtype, device=device)
        return {name: value * 1.01 if name == self.wrong else value for name, value in read.items()}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three blocks in several files."""
    return write_tiny_model(tmp_path_factory.mktemp("deep"), hidden=32, layers=3, max_shard_size="40KB")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_streamed_logits_are_those_of_transformers(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = CheckpointSource(write_tiny_model(tmp_path, architecture, hidden=32, dtype=dtype), torch.bfloat16)
    before, state = sorted(tmp_path.iterdir()), torch.random.get_rng_state()
    for available, compared in ((PLENTY, "whole model"), (LITTLE, "first block and head")):
        found = ask(source, available)
        assert (found.compared, found.relative_difference) == (compared, 0.0)
        assert found.transformers == transformers.__version__
    # Nothing of it stays, and no random number was drawn.
    assert sorted(tmp_path.iterdir()) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_supported_class_is_compared() -> None:
    assert {each.model_type for each in SUPPORTED} == {each.model_type for each in ARCHITECTURES.values()}


def test_a_model_that_fits_in_its_own_type_only_is_compared_whole_in_it(tmp_path: Path) -> None:
    source = CheckpointSource(write_tiny_model(tmp_path, hidden=32, dtype=torch.bfloat16))
    assert ask(source, int(1.5 * source.weight_bytes)).compared == "whole model"
    assert ask(source, int(0.9 * source.weight_bytes)).compared == "first block and head"


@pytest.mark.parametrize(
    ("wrong", "available"),
    [
        ("model.layers.2.mlp.down_proj.weight", PLENTY),
        ("model.norm.weight", PLENTY),
        ("model.layers.0.self_attn.v_proj.weight", LITTLE),
        ("model.norm.weight", LITTLE),
    ],
)
def test_a_reading_that_parts_from_transformers_stops_with_both_numbers(wrong: str, available: int, deep: Path) -> None:
    with pytest.raises(ModelMisread, match=r"relative difference over logits .* is \de-0\d|is \d\.\d\de-0\d") as caught:
        ask(Misreading(deep, wrong=wrong), available)
    assert "the bound 1e-04" in caught.value.detail
    assert transformers.__version__ in caught.value.detail
    assert (caught.value.code, caught.value.category) == ("model_misread", "platform")


def test_a_later_block_is_beyond_what_a_model_too_large_is_compared_by(deep: Path) -> None:
    wrong = Misreading(deep, wrong="model.layers.2.mlp.down_proj.weight")
    assert ask(wrong, LITTLE).relative_difference == 0.0


def test_what_transformers_would_make_up_is_a_misreading(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, "qwen2", hidden=32)
    state = load_file(directory / "model.safetensors")
    # Not checked by its names here, so that this check stands for itself.
    save_file(state | {"model.layers.0.mlp.up_proj.bias": torch.ones(96)}, directory / "model.safetensors")
    with pytest.raises(ModelMisread, match=r"does not use tensors .*model\.layers\.0\.mlp\.up_proj\.bias"):
        ask(CheckpointSource(directory))


def test_the_buffers_of_old_releases_do_not_disturb(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, hidden=32)
    source = edit(directory, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert ask(source).relative_difference == 0.0


def test_a_file_of_the_index_that_holds_nothing_does_not_disturb(deep: Path, tmp_path: Path) -> None:
    shutil.copytree(deep, tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = "nothing.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({}, tmp_path / "nothing.safetensors", metadata={"format": "pt"})
    assert ask(CheckpointSource(tmp_path)).relative_difference == 0.0


@pytest.mark.parametrize(
    "fields", [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}]
)
def test_what_a_call_returns_besides_logits_does_not_disturb(fields: dict[str, bool], tmp_path: Path) -> None:
    source = configure(write_tiny_model(tmp_path, hidden=32), **fields)
    assert ask(source).relative_difference == 0.0
    assert fields.keys().isdisjoint(source.config)


def test_an_original_with_a_number_that_is_none_is_told_as_such(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, hidden=32)
    source = edit(directory, **{"model.norm.weight": torch.full((32,), float("inf"))})
    with pytest.raises(NumericalInstability, match="The original itself, in float32, gives NaN or infinity, before"):
        ask(source)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_position_embeddings": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_scaling": {"type": "linear", "factor": "two"}},
        {"head_dim": 7},
        {"rms_norm_eps": "small"},
        {"hidden_act": "no such function"},
        {"layer_types": ["full_attention"]},
        {"dtype": "float33"},
        {"pad_token_id": 10**9},
        {"attention_dropout": "none"},
    ],
)
def test_a_value_that_no_model_can_have_is_the_models_fault(fields: dict[str, object], tmp_path: Path) -> None:
    source = configure(write_tiny_model(tmp_path, hidden=32), **fields)
    with pytest.raises((InvalidModel, UnsupportedArchitecture), match=r"config\.json|configuration") as caught:
        ask(source)
    assert isinstance(caught.value, EngineError)
    assert caught.value.category == "user"


def test_a_value_of_another_type_is_told_by_its_field(tmp_path: Path) -> None:
    source = configure(write_tiny_model(tmp_path, hidden=32), attention_dropout="none")
    with pytest.raises(UnsupportedArchitecture, match=r"config\.json has a value of attention_dropout that"):
        ask(source)
