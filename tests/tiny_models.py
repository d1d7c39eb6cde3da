"""Tiny random checkpoints of the supported architectures, each with a new tokenizer, made in under a second."""

import copy
import json
import pydoc_data.topics
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY = 512
ARCHITECTURES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "phi3": Phi3Config,
}
_TIED = ("llama", "gemma2", "gemma3")


def write_tiny_model(
    directory: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 96,
    heads: int = 4,
    key_value_heads: int = 2,
    outliers: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "50GB",
    beginning: str = "",
    **config: object,
) -> Path:
    """Write a dense safetensors checkpoint and its tokenizer into ``directory`` and return it.

    ``outliers`` plants massive activations: a few tokens drive one channel of every second block's ``down_proj``
    input to hundreds of times the median. Qwen2 gets random q/k/v biases, Qwen3 and Gemma a head size of
    hidden/heads · 2, Gemma sliding and full attention in turns, Phi-3 rotary positions on half of a head. The tokenizer
    puts the special tokens of ``beginning`` in front of a text.
    """
    settings: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "tie_word_embeddings": architecture in _TIED,
    } | _particulars(architecture, layers, 2 * hidden // heads)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](**(settings | config)), dtype=torch.float32)
    _randomize(model, seed)
    if outliers:
        _plant_outliers(model)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    (tokenizer_with(beginning) if beginning else tiny_tokenizer()).save_pretrained(directory)
    return directory


def _particulars(architecture: str, layers: int, head_dim: int) -> dict[str, object]:
    """Return the settings that an architecture needs besides sizes."""
    kinds = [("sliding_attention", "full_attention")[index % 2] for index in range(layers)]
    gemma = {"head_dim": head_dim, "query_pre_attn_scalar": head_dim, "sliding_window": 24, "layer_types": kinds}
    particulars: dict[str, dict[str, object]] = {
        "mistral": {"sliding_window": 24},
        "qwen3": {"head_dim": head_dim},
        "gemma2": gemma,
        "gemma3": gemma,
        "phi3": {"partial_rotary_factor": 0.5},
    }
    return particulars.get(architecture, {})


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 512 tokens on a part of CPython's language reference."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "\n".join(sorted(pydoc_data.topics.topics.values()))[:60_000]
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def panicking_tokenizer() -> dict[str, Any]:
    """The content of a ``tokenizer.json`` that tokenizers loads, and whose native code panics over every text."""
    content: dict[str, Any] = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    return content | {"pre_tokenizer": {"type": "FixedLength", "length": 0}}


def tokenizer_with(beginning: str, end: str = "") -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a template that puts special tokens in front of a text and behind it."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    backend = tokenizer.backend_tokenizer
    names = beginning.split() + end.split()
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join([beginning, "$A", end]).strip(),
        special_tokens=[(name, backend.token_to_id(name)) for name in sorted(set(names))],
    )
    return tokenizer


def _randomize(model: PreTrainedModel, seed: int) -> None:
    """Set weights large enough that blocks matter, and norms and biases so that mistakes in fusing show."""
    generator = torch.Generator().manual_seed(seed)
    gemma = model.config.model_type.startswith("gemma")  # multiplies embeddings by √hidden, and by 1 + a norm's weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.2 * noise if gemma else 1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(0.5 * noise * (parameter.shape[-1] ** -0.5 if gemma else 1.0))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def _plant_outliers(model: PreTrainedModel) -> None:
    """Give tokens 40 to 47 a common direction that the gate and up rows of one channel amplify."""
    hidden = model.config.hidden_size
    direction = torch.nn.functional.normalize(torch.randn(hidden, generator=torch.Generator().manual_seed(7)), dim=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[40:48] += 12.0 * direction
        for index, block in enumerate(model.model.layers):
            if index % 2 == 0:
                channel = 5 + index
                for rows in _gate_and_up(block.mlp):
                    rows[channel] = 12.0 * direction
                block.mlp.down_proj.weight[:, channel] *= 0.02


def _gate_and_up(mlp: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    if hasattr(mlp, "gate_up_proj"):
        return mlp.gate_up_proj.weight.chunk(2)
    return mlp.gate_proj.weight, mlp.up_proj.weight
