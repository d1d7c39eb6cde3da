"""Write an exported checkpoint: shards, configuration, tokenizer, model card.

Memory: one shard's worth of memory-mapped blocks.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from quant_engine.checkpoint.card import model_card
from quant_engine.checkpoint.config import checkpoint_config, hadamard_orders, is_power_of_two, stored_name
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.section import online_tensors
from quant_engine.errors import DiskFull, disk_full_as_error
from quant_engine.hadamard import hadamard_matrix

SHARD_BYTES: Final = 2**30

_COMPANIONS: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)

__all__ = ["SHARD_BYTES", "ExportedModel", "dense_hadamards", "stored_hadamard", "write_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """Everything a checkpoint says about itself.

    Attributes:
        source: the dense model's directory, for its tokenizer and companions.
        config: its sanitized configuration.
        linears: every quantized linear.
        dense: the names of all other linears.
        dtype: of the dense tensors and the scales.
        card: facts for the model card, label to value.
    """

    source: Path
    config: dict[str, Any]
    linears: Sequence[QuantizedLinear]
    dense: Sequence[str]
    dtype: torch.dtype
    card: Mapping[str, str]


def write_checkpoint(
    directory: Path,
    model: ExportedModel,
    parts: Sequence[Callable[[], dict[str, Tensor]]],
    *,
    on_part: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the whole checkpoint into the empty ``directory``.

    Args:
        parts: each gives some of the tensors (a block's, or the ends'), by their full names, when it is called.
        on_part: called with the number of parts written; all that is online is one more.

    Raises:
        DiskFull: the disk filled up.
    """
    with disk_full_as_error("the checkpoint"):
        transforms = [partial(_on_cpu, tensors) for tensors in online_tensors(model.linears)]
        every_part: list[Callable[[], dict[str, Tensor]]] = [
            *parts,
            *transforms,
            lambda: dense_hadamards(model.linears),
        ]
        # What is online counts as one part, however many transforms there are.
        _write_shards(directory, every_part, lambda done: on_part(min(done, len(parts) + 1)), shard_bytes)
        config = checkpoint_config(model.config, model.linears, model.dense, str(model.dtype).removeprefix("torch."))
        _write_json(directory / "config.json", config)
        for name in _COMPANIONS:
            if (model.source / name).is_file():
                shutil.copyfile(model.source / name, directory / name)
        (directory / "README.md").write_text(model_card(model.card, model.linears), encoding="utf-8")


def dense_hadamards(linears: Sequence[QuantizedLinear]) -> dict[str, Tensor]:
    """Each order that other readers need and can not construct, once, under its first linear's name."""
    matrices: dict[str, Tensor] = {}
    for order in hadamard_orders(linears):
        if not is_power_of_two(order):
            first = next(linear.name for linear in linears if linear.online.order == order)
            matrices[stored_name(first, order)] = stored_hadamard(order)
    return matrices


def stored_hadamard(order: int) -> Tensor:
    """Hᵀ [order, order] as ±1 in bfloat16: compressed-tensors multiplies x by it and divides by √order."""
    return hadamard_matrix(order, dtype=torch.float32).T.sign().to(torch.bfloat16).contiguous()


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _write_shards(
    directory: Path, parts: Sequence[Callable[[], dict[str, Tensor]]], on_part: Callable[[int], None], shard_bytes: int
) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    written: list[tuple[Path, list[str]]] = []
    for tensors in _shards(parts, on_part, shard_bytes):
        path = directory / f"shard-{len(written):05d}.safetensors"
        size = sum(tensor.nbytes for tensor in tensors.values())
        free = shutil.disk_usage(directory).free
        if size > free:
            raise DiskFull(
                detail=f"A checkpoint shard needs {size:,} bytes; {free:,} are free.",
                hint="Free some space, or move the data directory to a larger disk, and retry the job.",
            )
        save_file(tensors, path, metadata={"format": "pt"})
        written.append((path, list(tensors)))
        total += size
    for index, (path, names) in enumerate(written):
        final = f"model-{index + 1:05d}-of-{len(written):05d}.safetensors" if len(written) > 1 else "model.safetensors"
        path.rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    if len(written) > 1:
        index_content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(directory / "model.safetensors.index.json", index_content)


def _shards(
    parts: Sequence[Callable[[], dict[str, Tensor]]], on_part: Callable[[int], None], shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for done, part in enumerate(parts, start=1):
        tensors = part()
        added = sum(tensor.nbytes for tensor in tensors.values())
        if shard and size + added > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard |= tensors
        size += added
        on_part(done)
    yield shard


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
