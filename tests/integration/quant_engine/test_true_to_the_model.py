"""Whatever is wrong with a model's files: it is refused, or its export is the model that plain transformers loads.

Changes are planted at random places of tiny models of three architectures. Plain int8 noise of them is 0.02 to 0.04.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant_engine.errors import EngineError
from quant_engine.stages.export import CHECKPOINT
from tests.integration.quant_engine.helpers import fixed_ids
from tests.integration.quant_engine.runs import Killed, Killer, policy_of, run_policy, small
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow

ARCHITECTURES: Final = ("llama", "qwen2", "gemma3")
EXAMPLES: Final = 200
NOISE: Final = 0.05
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Draw = st.DataObject


@dataclass
class Model:
    """A model whose files are being changed.

    Attributes:
        dense: the weights that the stored ones stand for, where those are codes with their scales.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    dense: dict[str, Tensor]

    @property
    def meant(self) -> dict[str, Tensor]:
        """The tensors without codes and scales."""
        scales = {f"{name}_scale" for name in self.dense}
        return {name: value for name, value in self.state.items() if name not in scales} | self.dense

    def pick(self, data: Draw, *ends: str) -> str:
        """The name of a stored tensor."""
        names = sorted(name for name in self.state if name.endswith(ends or ("",)))
        return data.draw(st.sampled_from(names or sorted(self.state)))


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def plant_bias(model: Model, data: Draw) -> None:
    name = model.pick(data, "_proj.weight", HEAD)
    model.state[name.removesuffix("weight") + "bias"] = random_tensor(len(model.state[name]))


def plant_tensor(model: Model, data: Draw) -> None:
    module = model.pick(data).rpartition(".")[0]
    leaves = ["weight_scale", "g_idx", "lora_A.weight", "extra", "rotary_emb.inv_freq", "q_norm.weight"]
    model.state[f"{module}.{data.draw(st.sampled_from(leaves))}"] = random_tensor(8)


def plant_block(model: Model, _data: Draw) -> None:
    blocks = model.config["num_hidden_layers"]
    copied = {name: value for name, value in model.state.items() if f"layers.{blocks - 1}." in name}
    model.state |= {name.replace(f".{blocks - 1}.", f".{blocks}."): value.clone() for name, value in copied.items()}


def cut_blocks(model: Model, data: Draw) -> None:
    model.config["num_hidden_layers"] = data.draw(st.sampled_from([1, 3]))
    model.config.pop("layer_types", None)


def drop(model: Model, data: Draw) -> None:
    del model.state[model.pick(data)]


def drop_bias(model: Model, data: Draw) -> None:
    del model.state[model.pick(data, "bias")]


def foreign_head(model: Model, data: Draw) -> None:
    rows, columns = model.state[EMBEDDING].shape if EMBEDDING in model.state else (512, 64)
    model.state[HEAD] = random_tensor(rows + data.draw(st.sampled_from([0, 0, 0, 8])), columns)


def drop_end(model: Model, data: Draw) -> None:
    model.state.pop(data.draw(st.sampled_from([EMBEDDING, HEAD])), None)


def tie(model: Model, data: Draw) -> None:
    model.config.pop("tie_word_embeddings", None)
    model.config |= data.draw(st.sampled_from([{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}]))


def quantize_linear(model: Model, data: Draw) -> None:
    name = model.pick(data, "_proj.weight")
    if not model.state[name].is_floating_point() or model.state[name].ndim != 2:
        return
    scale = model.state[name].abs().amax(1, keepdim=True) / 127
    codes = (model.state[name] / scale).round().to(torch.int8)
    model.dense[name] = codes * scale
    kind = data.draw(st.sampled_from(["codes", "codes and scales", "float codes", "scales beside a dense weight"]))
    if kind != "scales beside a dense weight":
        model.state[name] = codes.float() if kind == "float codes" else codes
    if kind != "codes":
        model.state[f"{name}_scale"] = scale


def rename(model: Model, data: Draw) -> None:
    change: Callable[[str], str] = data.draw(
        st.sampled_from(
            [
                lambda name: name.removeprefix("model."),
                lambda name: f"model.{name}",
                lambda name: f"language_model.{name}",
                lambda name: name.replace("layers.1.", "layers.7."),
            ]
        )
    )
    model.state = {change(name): value for name, value in model.state.items()}
    model.dense = {change(name): value for name, value in model.dense.items()}


def reshape(model: Model, data: Draw) -> None:
    name = model.pick(data)
    change = data.draw(st.sampled_from(["transposed", "flat", "longer"]))
    value = model.state[name]
    changes = {"transposed": lambda: value.mT if value.ndim > 1 else value, "flat": value.flatten}
    model.state[name] = changes.get(change, lambda: torch.cat([value, value]))().contiguous()


def other_type(model: Model, data: Draw) -> None:
    name = model.pick(data)
    if model.state[name].is_floating_point():
        model.state[name] = model.state[name].to(data.draw(st.sampled_from([torch.float64, torch.bfloat16])))


def announce(model: Model, data: Draw) -> None:
    field = data.draw(st.sampled_from(["attention_bias", "mlp_bias"]))
    model.config[field] = data.draw(st.booleans())


def harmless(model: Model, _data: Draw) -> None:
    model.state["model.layers.0.self_attn.rotary_emb.inv_freq"] = random_tensor(8)


CHANGES: Final = (
    *(plant_bias, plant_tensor, plant_block, cut_blocks, drop, drop_bias, foreign_head, drop_end, tie, quantize_linear),
    *(rename, reshape, other_type, announce, harmless),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model of each architecture, untied, without a change."""
    sizes: dict[str, Any] = {"hidden": 32, "intermediate": 48, "heads": 2, "key_value_heads": 1}
    return {
        name: write_tiny_model(tmp_path_factory.mktemp(name), name, tie_word_embeddings=False, **sizes)
        for name in ARCHITECTURES
    }


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("runs")
    yield directory
    shutil.rmtree(directory)


def write(model: Model, original: Path, directory: Path, *, state: dict[str, Tensor]) -> Path:
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(original / name, directory)
    (directory / "config.json").write_text(json.dumps(model.config))
    # Copies, because safetensors refuses tensors that share memory.
    save_file({name: value.clone() for name, value in state.items()}, directory / "model.safetensors")
    return directory


def plain_logits(directory: Path) -> Tensor:
    with torch.no_grad():
        logits: Tensor = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(fixed_ids()).logits
    return logits


def export(model: Path, out: Path) -> Path | None:
    """The checkpoint of a run, or None if the model is refused as the user's. The gate is not waited for."""
    try:
        run_policy(model, policy_of(preset="w8a8"), out, Killer("verify", 0), **small())
    except Killed:
        return out / "work" / "export" / CHECKPOINT
    except EngineError as error:
        if error.category != "user":
            raise
    return None


def test_an_export_is_the_model_of_plain_transformers_or_there_is_none(
    originals: dict[str, Path], scratch: Path
) -> None:
    exported = {True: 0, False: 0}

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(ARCHITECTURES), st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2), st.data())
    def check(architecture: str, changes: list[Callable[[Model, Draw], None]], data: Draw) -> None:
        original = originals[architecture]
        config = json.loads((original / "config.json").read_text())
        model = Model(config, load_file(original / "model.safetensors"), {})
        for change in changes:
            change(model, data)
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            out = Path(name)
            found = export(write(model, original, out / "model", state=model.state), out)
            exported[found is not None] += 1
            if found is not None:
                reference = plain_logits(write(model, original, out / "meant", state=model.meant))
                difference = float((plain_logits(found) - reference).norm() / reference.norm())
                assert difference < NOISE

    check()
    # Both happen often enough for the property to say something.
    assert exported[True] >= EXAMPLES // 8
    assert exported[False] >= EXAMPLES // 3
