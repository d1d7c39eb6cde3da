"""Write an exported checkpoint: shards, configuration, and the files that are copied from the dense model.

Memory: one shard and one part. A part is a block in a memory-mapped file. The card is written last, by
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

from quant_engine.checkpoint.config import checkpoint_config, stored_name, stored_orders
from quant_engine.checkpoint.copied_files import copy_files
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.quantry_section import online_tensors
from quant_engine.errors import DiskFull, disk_full_as_error
from quant_engine.hadamard import hadamard_matrix
from quant_engine.model_files import ModelFiles

SHARD_BYTES: Final = 2**30

__all__ = ["SHARD_BYTES", "ExportedModel", "dense_hadamards", "stored_hadamard", "write_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """The description of the model that is exported.

    Attributes:
        source: the dense model's files, for its tokenizer and the other files that are copied.
        config: its sanitized configuration.
        linears: every quantized linear.
        dense: the names of all other linears.
        dtype: of the dense tensors and the scales.
    """

    source: ModelFiles
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
    """Write the whole checkpoint except its card into the empty ``directory``.

    The files of an interrupted call can not be used: start again in an empty directory.

    Args:
        parts: each returns some of the tensors (a block's, or those outside the blocks), by their full names.
        on_part: called with the number of parts read; everything online counts as one more part.
        shard_bytes: largest size of a file, unless it holds a single larger tensor.

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
        # All transforms together count as one part, so that the progress does not depend on their number.
        _write_shards(directory, every_part, lambda done: on_part(min(done, len(parts) + 1)), shard_bytes)
        config = checkpoint_config(model.config, model.linears, model.dense, str(model.dtype).removeprefix("torch."))
        _write_json(directory / "config.json", config)
        copy_files(model.source, directory)


def dense_hadamards(linears: Sequence[QuantizedLinear]) -> dict[str, Tensor]:
    """Return each matrix that other readers need, once, under the name of the first linear that uses it."""
    return {stored_name(name, order): stored_hadamard(order) for order, name in stored_orders(linears).items()}


def stored_hadamard(order: int) -> Tensor:
    """Return Hᵀ [order, order] as ±1 in bfloat16; compressed-tensors multiplies x by it and divides by √order."""
    return hadamard_matrix(order, dtype=torch.float32).T.sign().to(torch.bfloat16).contiguous()


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _write_shards(
    directory: Path, parts: Sequence[Callable[[], dict[str, Tensor]]], on_part: Callable[[int], None], shard_bytes: int
) -> None:
    total = 0
    written: list[tuple[Path, list[str]]] = []
    for shard in _shards(parts, on_part, shard_bytes):
        # A temporary name: the final one contains the number of shards, which is not known yet.
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
    # Checked before the file is written, so that the error has both numbers.
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
    """Yield the tensors in their order, as shards that end where the next tensor would not fit.

    A shard is emptied before the next one is built, so that there is never more than one in memory. The caller must not
    use it after that.
    """
    shard: dict[str, Tensor] = {}
    size = 0
    for done, part in enumerate(parts, start=1):
        tensors = dict(part())
        for name in list(tensors):
            # Taken out of the part, so that a tensor's memory is released with its shard.
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
