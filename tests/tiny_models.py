"""Tiny random checkpoints of the supported architectures, with a tokenizer trained on the spot; well under a second."""

import pydoc_data.topics
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    MistralConfig,
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
}


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
    **config: object,
) -> Path:
    """Write a dense safetensors checkpoint and its tokenizer into ``directory`` and return it.

    ``outliers`` plants massive activations: a few tokens drive one channel of every second block's ``down_proj``
    input to hundreds of times the median. Qwen2 gets random q/k/v biases, Qwen3 a head size of hidden/heads · 2.
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
        "tie_word_embeddings": architecture == "llama",
    }
    if architecture == "qwen3":
        settings["head_dim"] = 2 * hidden // heads
    if architecture == "mistral":
        settings["sliding_window"] = 24
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](**(settings | config)), dtype=torch.float32)
    _randomize(model, seed)
    if outliers:
        _plant_outliers(model)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens trained on a slice of CPython's language reference."""
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


def _randomize(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough that the blocks matter; norms and biases away from one and zero, so that fusing shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def _plant_outliers(model: PreTrainedModel) -> None:
    """Tokens 40 to 47 share a direction that the gate and up rows of one channel read out strongly."""
    hidden = model.config.hidden_size
    direction = torch.nn.functional.normalize(torch.randn(hidden, generator=torch.Generator().manual_seed(7)), dim=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[40:48] += 12.0 * direction
        for index, block in enumerate(model.model.layers):
            if index % 2 == 0:
                channel = 5 + index
                block.mlp.gate_proj.weight[channel] = 12.0 * direction
                block.mlp.up_proj.weight[channel] = 12.0 * direction
                block.mlp.down_proj.weight[:, channel] *= 0.02
