"""A local model that passes every check at submit, made in milliseconds and without torch.

Its weights are a hole in a sparse file: for jobs that a scripted runner takes, or that nothing takes.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, Final

from quant_engine.interface.layout import model_layout

CONFIG: Final[dict[str, Any]] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
}
_BYTES: Final = {"BF16": 2, "I32": 4, "I8": 1}
_TOKENIZER: Final[dict[str, Any]] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "the": 1}, "unk_token": "<unk>"},
}


def sound_files(**config: Any) -> dict[str, bytes]:
    """Return the files of the model by name; the weight file has zeros."""
    described = CONFIG | config
    header, size = _header(described)
    return {
        "config.json": json.dumps(described).encode(),
        "tokenizer.json": json.dumps(_TOKENIZER).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}).encode(),
        "model.safetensors": header + bytes(size),
    }


def write_sound_model(directory: Path, **config: Any) -> Path:
    """Write the model into ``directory``, which may exist, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    header, size = _header(CONFIG | config)
    for name, content in sound_files(**config).items():
        if name != "model.safetensors":
            (directory / name).write_bytes(content)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return directory


def add_tensor(directory: Path, name: str, shape: tuple[int, ...] = (8, 8), dtype: str = "BF16") -> Path:
    """Add one more tensor to the model in ``directory``, and return the directory. ``dtype`` is a safetensors name."""
    weights = directory / "model.safetensors"
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    begin = max(entry["data_offsets"][1] for entry in entries.values())
    end = begin + math.prod(shape) * _BYTES[dtype]
    entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    with weights.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


def _header(config: dict[str, Any]) -> tuple[bytes, int]:
    """Return the beginning of a weight file in bfloat16, and how many bytes of weights follow it."""
    entries, end = {}, 0
    for name, shape in model_layout(config).tensors.items():
        begin = end
        end = begin + math.prod(shape) * _BYTES["BF16"]
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text, end
