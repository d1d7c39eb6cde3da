"""Ties and names: a model is the one that plain transformers loads from the same directory, or it is refused."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping

from quant_engine.errors import InvalidModel
from quant_engine.interface.architectures import ARCHITECTURES as SUPPORTED
from quant_engine.interface.layout import model_layout
from quant_engine.model_files.unread import check_tensors
from quant_engine.models import (
    CheckpointSource,
    RotatedSource,
    StreamedModel,
    empty_model,
    hadamard_rotation,
    model_configuration,
)
from tests.integration.quant_engine.helpers import fixed_ids, streamed_logits
from tests.tiny_models import ARCHITECTURES, write_tiny_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
State = dict[str, Tensor]
STORED: dict[str, Callable[[State], State]] = {
    "both, different": dict,
    "both, equal": lambda state: state | {HEAD: state[EMBEDDING].clone()},
    "only the embedding": lambda state: without(state, HEAD),
    "only the head": lambda state: without(state, EMBEDDING),
}
RENAMED: dict[str, Callable[[str], str]] = {
    "without the prefix": lambda name: name.removeprefix("model."),
    "the prefix twice": lambda name: f"model.{name}",
    "the head under the prefix": lambda name: f"model.{name}" if name == HEAD else name,
    "one block without": lambda name: name.removeprefix("model.") if ".layers.1." in name else name,
    "of a multimodal model": lambda name: f"language_model.{name}",
    "inside a multimodal model": lambda name: name.replace("model.", "model.language_model."),
    "of GPT": lambda name: name.replace("model.", "transformer."),
    "of DDP": lambda name: f"module.{name}",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The untied tiny model of an architecture, made once; copy it before a change."""
    made: dict[str, Path] = {}

    def model(architecture: str) -> Path:
        if architecture not in made:
            directory = tmp_path_factory.mktemp(architecture)
            made[architecture] = write_tiny_model(directory, architecture, hidden=32, tie_word_embeddings=False)
        return made[architecture]

    return model


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # transformers logs a table for each of these models.
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def without(state: State, name: str) -> State:
    return {other: value for other, value in state.items() if other != name}


def changed(original: Path, directory: Path, change: Callable[[State], State], tied: bool | None) -> Path:
    """A copy of a model with other tensors, and with a flag for the tie, or none."""
    config = json.loads((original / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    config |= {} if tied is None else {"tie_word_embeddings": tied}
    (directory / "config.json").write_text(json.dumps(config))
    state = change(load_file(original / "model.safetensors"))
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def plain_logits(directory: Path) -> Tensor | None:
    """What plain transformers computes; None where it would make up a weight."""
    attention = "eager" if "gemma2" in (directory / "config.json").read_text() else "sdpa"
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation=attention, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        return None
    with torch.no_grad():
        logits: Tensor = model.eval()(fixed_ids(length=16)).logits
    return logits


def our_logits(directory: Path) -> Tensor | None:
    """What a run reads; None where it refuses the tensors."""
    source = CheckpointSource(directory)
    try:
        check_tensors(source.description, model_layout(source.config))
    except InvalidModel:
        return None
    logits = streamed_logits(StreamedModel(source), fixed_ids(length=16))
    with torch.no_grad():
        assert torch.equal(StreamedModel(source).whole()(fixed_ids(length=16)).logits, logits)
    return logits


def assert_same(directory: Path) -> bool:
    """Whether the model is read; if so, then as plain transformers reads it."""
    expected, found = plain_logits(directory), our_logits(directory)
    assert (found is None) == (expected is None)
    assert found is None or (expected is not None and torch.equal(found, expected))
    return found is not None


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tie_is_what_transformers_makes_of_it(
    architecture: str, stored: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    read = {}
    for tied in (True, False, None):
        directory = tmp_path / str(tied)
        directory.mkdir()
        read[tied] = assert_same(changed(models(architecture), directory, STORED[stored], tied))
    # The class default decides where the configuration does not say.
    assert read == {
        True: True,
        False: stored.startswith("both"),
        None: read["gemma" in architecture],
    }


@pytest.mark.parametrize("renamed", RENAMED)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_names_are_those_that_transformers_finds(
    architecture: str, renamed: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    def rename(state: State) -> State:
        return {RENAMED[renamed](name): value for name, value in state.items()}

    directory = changed(models(architecture), tmp_path, rename, tied=False)
    understood = list(RENAMED).index(renamed) < 4
    assert assert_same(directory) is understood
    if not understood:
        source = CheckpointSource(directory)
        with pytest.raises(InvalidModel, match="names begin with") as caught:
            check_tensors(source.description, model_layout(source.config))
        assert "save" in caught.value.hint


def test_a_rotation_of_a_model_that_its_weights_untie(models: Callable[[str], Path], tmp_path: Path) -> None:
    source = CheckpointSource(changed(models("llama"), tmp_path, STORED["both, different"], tied=True))
    assert source.config["tie_word_embeddings"] is False
    rotated = RotatedSource(source, hadamard_rotation(model_configuration(source.config), seed=1))
    logits = [streamed_logits(StreamedModel(each), fixed_ids(length=16)) for each in (source, rotated)]
    assert float((logits[0] - logits[1]).norm() / logits[0].norm()) < 1e-4


@pytest.mark.parametrize("architecture", SUPPORTED, ids=lambda each: each.class_name)
def test_transformers_renames_nothing_else_for_a_supported_class(architecture: object) -> None:
    """The names that are looked for are complete as long as a release adds no conversion for one of the classes."""
    config = {"model_type": architecture.model_type, "num_hidden_layers": 1}  # type: ignore[attr-defined]  # see ids
    conversions = get_model_conversion_mapping(empty_model(model_configuration(config), torch.float32))
    renamed = {pattern for each in conversions for pattern in each.source_patterns}
    # Of old layer norms and of weight norms, which none of the classes has.
    assert renamed == {"LayerNorm.gamma", "LayerNorm.beta", ".weight_g$", ".weight_v$"}
