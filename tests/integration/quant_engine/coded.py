"""Checkpoints whose linears are codes with scales, as other writers store them, and the dense models that they mean.

Shapes: O output and I input channels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}


@dataclass(frozen=True)
class Writer:
    """One way of storing codes: their type, what shares a scale, and how the scale is stored.

    Attributes:
        block: rows and columns; None for the whole extent.
        shape: brings the grid of scales into the stored shape.
        extra: other tensors beside each weight, by the last part of their names.
        config: the ``quantization_config``; None for none.
        files: files beside config.json.
    """

    codes: torch.dtype = torch.float8_e4m3fn
    block: tuple[int | None, int | None] = (None, None)
    part: str = "weight_scale"
    scales: torch.dtype = torch.float32
    shape: Callable[[Tensor], Tensor] = lambda grid: grid
    extra: dict[str, Tensor] | None = None
    config: dict[str, Any] | None = None
    files: dict[str, Any] | None = None


MODELOPT = Writer(
    shape=lambda grid: grid.reshape(()),
    extra={"input_scale": torch.tensor(0.02)},
    files={"hf_quant_config.json": {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}},
)
INT8 = Writer(codes=torch.int8, block=(1, None))
BLOCKS = Writer(
    block=(32, 16),
    part="weight_scale_inv",
    config={"quant_method": "fp8", "weight_block_size": [32, 16], "activation_scheme": "dynamic"},
)
FBGEMM = Writer(block=(1, None), config={"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})


def encode(dense: Path, directory: Path, writer: Writer) -> Path:
    """Write ``dense`` with its linears as codes into ``directory``, and the dense model that it means below it.

    Returns:
        The directory of the dense model.
    """
    stored, meant = load_file(dense / "model.safetensors"), {}
    written: dict[str, Tensor] = {}
    for name, value in stored.items():
        written[name] = meant[name] = value
        if name.endswith("_proj.weight"):
            codes, grid = _codes(value.float(), writer)
            written[name] = codes
            written[name.replace(".weight", f".{writer.part}")] = writer.shape(grid).contiguous()
            for part, tensor in (writer.extra or {}).items():
                written[name.replace(".weight", f".{part}")] = tensor.clone()
            meant[name] = dequantized(codes, grid, writer).to(value.dtype)
    original = directory.with_name(f"{directory.name}-dense")
    for path, tensors in ((directory, written), (original, meant)):
        path.mkdir()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        for file in dense.iterdir():
            if file.suffix != ".safetensors":
                (path / file.name).write_bytes(file.read_bytes())
    if writer.config is not None:
        content = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(content | {"quantization_config": writer.config}))
    for file_name, content in (writer.files or {}).items():
        (directory / file_name).write_text(json.dumps(content))
    return original


def dequantized(codes_OI: Tensor, grid: Tensor, writer: Writer) -> Tensor:
    """Code times scale in fp64, block by block: the definition."""
    high, wide = _extents(codes_OI, writer)
    found = codes_OI.to(torch.float64)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            rows, columns = slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide)
            found[rows, columns] *= float(grid[row, column])
    return found


def plain_logits(directory: Path, ids_BT: Tensor) -> Tensor:
    """What plain transformers computes."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    with torch.no_grad():
        logits: Tensor = model(ids_BT, use_cache=False).logits
    return logits


def _extents(weight_OI: Tensor, writer: Writer) -> tuple[int, int]:
    rows, columns = weight_OI.shape
    return writer.block[0] or rows, writer.block[1] or columns


def _codes(w_OI: Tensor, writer: Writer) -> tuple[Tensor, Tensor]:
    """Return the codes [O, I] to nearest, and the grid of scales that a block's largest entry gives."""
    high, wide = _extents(w_OI, writer)
    largest = _LARGEST[writer.codes]
    rows, columns = w_OI.shape
    peaks = [
        [w_OI[row : row + high, column : column + wide].abs().max() for column in range(0, columns, wide)]
        for row in range(0, rows, high)
    ]
    grid = (torch.tensor(peaks) / largest).to(writer.scales)
    spread = grid.float().repeat_interleave(high, 0)[: w_OI.shape[0]].repeat_interleave(wide, 1)[:, : w_OI.shape[1]]
    ratio = w_OI / spread
    ratio = ratio.clamp(-largest, largest)
    return (ratio.round() if writer.codes == torch.int8 else ratio).to(writer.codes), grid
