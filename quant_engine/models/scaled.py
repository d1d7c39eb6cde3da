"""Read weights that are stored as codes of eight bits with scales beside them (FP8, int8): w = code · scale.

Shapes: O output and I input channels, R × C the grid of scales.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant_engine.errors import InvalidModel
from quant_engine.model_files import ScaledWeight, SourceQuantization, without_quantization
from quant_engine.model_files.headers import FLOATING
from quant_engine.model_files.parsing import REPAIR
from quant_engine.models.source import CheckpointSource, prevailing_dtype


@dataclass(frozen=True)
class ScaledSource:
    """A checkpoint of codes and scales as the dense model that they represent: a :class:`WeightSource`.

    Its scales of activations are not used: its linears compute with inputs in floating point.

    Raises (from every reading member):
        InvalidModel: a scale is not finite; and see :class:`CheckpointSource`.
    """

    base: CheckpointSource
    quantization: SourceQuantization

    @property
    def directory(self) -> Path:
        """Where the checkpoint and its tokenizer are."""
        return self.base.directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sanitized configuration of the model without quantization."""
        return without_quantization(self.base.stored_config)

    @cached_property
    def tensors(self) -> dict[str, Path]:
        """The dense tensors that can be read, and the files that they come from."""
        hidden = {weight.scale for weight in self.quantization.weights.values()} | self.quantization.idle
        return {name: path for name, path in self.base.tensors.items() if name not in hidden}

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of an export's dense tensors."""
        return self.base.export_dtype or self.computed_dtype

    @cached_property
    def computed_dtype(self) -> torch.dtype:
        """The type of the dense model: that which the configuration names, else that of most tensors besides scales."""
        most = prevailing_dtype(self.base.stored[name] for name in self.tensors)
        return self.base.named_dtype or most or torch.bfloat16

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the dense weights."""
        return sum(self._dense_bytes(name) for name in self.tensors)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the stored checkpoint."""
        return self.base.fingerprint

    def read(
        self, names: Iterable[str], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the named tensors as ``dtype`` on ``device``; codes are multiplied by their scales."""
        names = list(names)
        weights = self.quantization.weights
        read = self.base.read([name for name in names if name not in weights], dtype=dtype, device=device)
        for name in names:
            if name in weights:
                # Rounded to the model's own type, as transformers does: that is the model which others run.
                read[name] = self._dequantized(weights[name], device).to(self.computed_dtype).to(dtype)
        return {name: read[name] for name in names}

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Do nothing: the weights are dense when they are read."""

    def stored_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the tensors of the checkpoint that reading ``names`` uses, and the scales that no weight needs."""
        names = list(names)
        weights = self.quantization.weights
        scales = (weights[name].scale for name in names if name in weights)
        return self.base.stored_names([*names, *scales, *self.quantization.idle])

    @property
    def parts(self) -> frozenset[str]:
        """The tensors of the checkpoint that are codes or scales."""
        return self.stored_names(self.quantization.weights)

    def stored_bytes(self, linear: str) -> int:
        """Return the bytes of a linear's codes and scales, or of its dense weight."""
        weight = f"{linear}.weight"
        codes = self.quantization.weights.get(weight)
        names = [weight] if codes is None else [weight, codes.scale]
        return sum(self.base.stored_bytes[name] for name in names)

    def _dense_bytes(self, name: str) -> int:
        tensor = self.base.stored[name]
        if name not in self.quantization.weights or tensor.dtype in FLOATING:
            return tensor.bytes
        rows, columns = self.quantization.weights[name].shape
        return rows * columns * self.dtype.itemsize

    def _dequantized(self, weight: ScaledWeight, device: torch.device | str) -> Tensor:
        """Return a weight [O, I] in fp32: the codes are exact in it, so that the product is rounded once."""
        stored = self.base.read([weight.name, weight.scale], dtype=torch.float32, device=device)
        scale = stored[weight.scale]
        if not bool(scale.isfinite().all()):
            raise InvalidModel(detail=f"{weight.scale} holds scales that are not finite.", hint=REPAIR)
        return stored[weight.name] * expanded_scale(scale, weight)


def expanded_scale(scale: Tensor, weight: ScaledWeight) -> Tensor:
    """Return the scale of every entry of a weight, in a shape that broadcasts to [O, I]."""
    (rows, columns), (high, wide) = weight.shape, weight.block
    grid_RC = scale.reshape(-(-rows // high), -(-columns // wide))
    if wide == columns:
        return grid_RC if high in (1, rows) else grid_RC.repeat_interleave(high, 0)[:rows]
    # Blocks at the edges are cut, where the sizes are no multiples of the block's.
    return grid_RC.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
