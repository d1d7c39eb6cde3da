"""Models like those in public bug reports of quantizers: each is in one way not what its files say at first sight.

Shapes: V tokens of the vocabulary, D channels of the stream.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.quant_engine import coded
from tests.tiny_models import tiny_tokenizer, write_tiny_model

BOS: Final = 0
EXTRA: Final = "<extra3>"
"""A token whose id is beyond the embedding of ``c10``."""
_INT8: Final = coded.Writer(codes=torch.int8, shape=lambda grid: grid.reshape(()))
_ADAPTER: Final = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}
_GREEDY: Final = {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "bos_token_id": 0, "eos_token_id": [1, 3]}


def write_field_models(directory: Path) -> None:
    """Write every model into a folder of ``directory`` with the name of its case (``c05-tied-flag``)."""
    write_tiny_model(directory / "sound", layers=1)
    _change_config(write_tiny_model(directory / "c05-tied-flag", "qwen2", layers=1), tie_word_embeddings=True)
    _rename(
        write_tiny_model(directory / "c05-head-only", "qwen2", layers=1, tie_word_embeddings=True),
        lambda name: name.replace("model.embed_tokens", "lm_head"),
    )
    _more_tokens(write_tiny_model(directory / "c10-short", layers=1))
    _harmless(write_tiny_model(directory / "c11-odd", layers=1, hidden=96, intermediate=200))
    greedy = write_tiny_model(directory / "c15-greedy", layers=1)
    (greedy / "generation_config.json").write_text(json.dumps(_GREEDY))
    _rename(write_tiny_model(directory / "c17-no-prefix", layers=1), lambda name: name.removeprefix("model."))
    _adapter(directory / "c18-adapter")
    biased = write_tiny_model(directory / "c19-biases", layers=1, attention_bias=True, mlp_bias=True)
    _change_config(biased, attention_bias=False, mlp_bias=False)
    dense = write_tiny_model(directory / "c20", layers=1, dtype=torch.bfloat16)
    coded.encode(dense, directory / "c20-fp8", coded.MODELOPT)
    coded.encode(dense, directory / "c20-int8", _INT8)
    write_tiny_model(directory / "c22-short", layers=1, max_position_embeddings=64)
    _massive(write_tiny_model(directory / "c27-bos", beginning="<s>", dtype=torch.bfloat16))
    broken = write_tiny_model(directory / "c29-broken", layers=1)
    (broken / "generation_config.json").write_text("{not json")


def _change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone().contiguous() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})


def _rename(directory: Path, new_name: Callable[[str], str]) -> None:
    _change_tensors(directory, lambda tensors: {new_name(name): tensor for name, tensor in tensors.items()})


def _more_tokens(directory: Path) -> None:
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([f"<extra{number}>" for number in range(8)])
    tokenizer.save_pretrained(directory)


def _harmless(directory: Path) -> None:
    """Store buffers that older releases of transformers wrote, and that no model needs."""
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(12),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
    }
    _change_tensors(directory, lambda tensors: tensors | buffers)


def _adapter(directory: Path) -> None:
    directory.mkdir()
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{prefix}.lora_A.weight": torch.ones(4, 64), f"{prefix}.lora_B.weight": torch.ones(64, 4)}
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(_ADAPTER))
    tiny_tokenizer().save_pretrained(directory)


def _massive(directory: Path) -> None:
    """Let <s>, and no other token, drive one channel of the first feed-forward far out, as in Gemma and Llama 3."""

    def planted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        embedding_VD = tensors["model.embed_tokens.weight"].float()
        size = embedding_VD.norm(dim=1).median()
        random_D = torch.randn(embedding_VD.shape[1], generator=torch.Generator().manual_seed(3))
        u_D = torch.nn.functional.normalize(random_D, dim=0)
        embedding_VD -= (embedding_VD @ u_D)[:, None] * u_D
        embedding_VD[BOS] = 2 * size * u_D
        tensors["model.embed_tokens.weight"] = embedding_VD.bfloat16()
        block = "model.layers.0"
        tensors[f"{block}.post_attention_layernorm.weight"].fill_(1)
        tensors[f"{block}.self_attn.o_proj.weight"].zero_()
        for rows in ("gate_proj", "up_proj"):
            tensors[f"{block}.mlp.{rows}.weight"][5] = (8 * u_D).bfloat16()
        tensors[f"{block}.mlp.down_proj.weight"][:, 5] *= 0.05
        return tensors

    _change_tensors(directory, planted)
