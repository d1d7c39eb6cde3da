"""Write an exported checkpoint: shards, configuration, and what it takes over from the dense model.

Memory: one shard and one part, a part being a block as it lies in a memory-mapped file. The card is written last, by
:mod:`quant_engine.checkpoint.card`.
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

from quant_engine.checkpoint.companions import copy_companions
from quant_engine.checkpoint.config import checkpoint_config, stored_name, stored_orders
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.section import online_tensors
from quant_engine.errors import DiskFull, disk_full_as_error
from quant_engine.hadamard import hadamard_matrix

SHARD_BYTES: Final = 2**30

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
    """

    source: Path
    config: dict[str, Any]
    linears: Sequence[QuantizedLinear]
    dense: Sequence[str]
    dtype: torch.dtype


def write_checkpoint(
    directory: Path,
    model: ExportedModel,
    parts: Sequence[Callable[[], dict[str, Tensor]]],
    *,
    on_part: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the whole checkpoint but its card into the empty ``directory``.

    What an interrupted call has left is of no use: start again in an empty directory.

    Args:
        parts: each gives some of the tensors (a block's, or the ends'), by their full names, when it is called.
        on_part: called with the number of parts read; all that is online is one more.
        shard_bytes: a file holds no more than this, unless it holds one tensor.

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
        copy_companions(model.source, directory)


def dense_hadamards(linears: Sequence[QuantizedLinear]) -> dict[str, Tensor]:
    """Each matrix that other readers take from the checkpoint, once, under the name of the first linear it is for."""
    return {stored_name(name, order): stored_hadamard(order) for order, name in stored_orders(linears).items()}


def stored_hadamard(order: int) -> Tensor:
    """Hᵀ [order, order] as ±1 in bfloat16: compressed-tensors multiplies x by it and divides by √order."""
    return hadamard_matrix(order, dtype=torch.float32).T.sign().to(torch.bfloat16).contiguous()


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _write_shards(
    directory: Path, parts: Sequence[Callable[[], dict[str, Tensor]]], on_part: Callable[[int], None], shard_bytes: int
) -> None:
    total = 0
    written: list[tuple[Path, list[str]]] = []
    for shard in _shards(parts, on_part, shard_bytes):
        path = directory / f"shard-{len(written):05d}.safetensors"
        _write_shard(path, shard)
        written.append((path, list(shard)))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(written) == 1:
        written[0][0].rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, (path, names) in enumerate(written, start=1):
        final = f"model-{index:05d}-of-{len(written):05d}.safetensors"
        path.rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    index_content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / "model.safetensors.index.json", index_content)


def _write_shard(path: Path, shard: dict[str, Tensor]) -> None:
    size = sum(tensor.nbytes for tensor in shard.values())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise DiskFull(
            detail=f"A checkpoint shard needs {size:,} bytes; {free:,} are free.",
            hint="Free some space, or move the data directory to a larger disk, and retry the job.",
        )
    save_file(shard, path, metadata={"format": "pt"})


def _shards(
    parts: Sequence[Callable[[], dict[str, Tensor]]], on_part: Callable[[int], None], shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, cut where the next one would not fit.

    A shard is only good until the next is asked for: it is emptied then, so that there is never more than one.
    """
    shard: dict[str, Tensor] = {}
    size = 0
    for done, part in enumerate(parts, start=1):
        tensors = dict(part())
        for name in list(tensors):
            tensor = tensors.pop(name)
            if shard and size + tensor.nbytes > shard_bytes:
                yield shard
                shard.clear()
                size = 0
            shard[name] = tensor
            size += tensor.nbytes
        on_part(done)
    yield shard


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
