"""A linear's quantized weight as compressed-tensors stores it, in the layout that its number formats call for.

A quantized block on disk holds codes of eight bits as they are, and narrower ones as dense bits. Which of the two
compressed-tensors' format of a linear means is settled where the checkpoint is written: :func:`exported_tensors`.

Shapes: O output channels, I input channels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy, QuantizationType
from torch import Tensor

from quant_engine.checkpoint.online import OnlineInput
from quant_engine.grids import Quantized
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization

_BYTE: Final = 8
_STRATEGIES: Final = {
    "channel": QuantizationStrategy.CHANNEL,
    "group": QuantizationStrategy.GROUP,
    "tensor": QuantizationStrategy.TENSOR,
}


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """How one linear of an exported model is quantized."""

    name: str
    weights: WeightQuantization
    activations: ActivationQuantization
    online: OnlineInput

    @property
    def format(self) -> CompressionFormat:
        """compressed-tensors' layout of the weight: the one that runtimes have kernels for."""
        if self.weights.format.is_float:
            return CompressionFormat.float_quantized
        bytewise = self.weights.format is NumberFormat.INT8 and self.activations.format is NumberFormat.INT8
        if bytewise and self.weights.granularity != "group":
            return CompressionFormat.int_quantized
        return CompressionFormat.pack_quantized

    def scheme(self, targets: list[str] | None = None) -> QuantizationScheme:
        """The compressed-tensors scheme; its targets are this linear unless others are given."""
        return QuantizationScheme(
            targets=[self.name] if targets is None else targets,
            weights=QuantizationArgs(
                num_bits=self.weights.format.bits,
                type=_number_type(self.weights.format),
                strategy=_STRATEGIES[self.weights.granularity],
                group_size=self.weights.group_size,
                symmetric=True,
                dynamic=False,
            ),
            input_activations=_input_arguments(self.activations),
            format=self.format,
        )


def packed_tensors(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """A quantized weight as a block's file holds it, with ``<name>.weight_scale``.

    ``<name>.weight`` are int8 or float8_e4m3fn codes; below eight bits it is ``<name>.weight_packed`` (int32, dense
    bits) and ``<name>.weight_shape``.
    """
    scale = quantized.scale.flatten() if quantized.scale.numel() == 1 else quantized.scale
    stored = {f"{name}.weight_scale": scale.contiguous()}
    if quantized.bits == _BYTE:
        return stored | {f"{name}.weight": quantized.codes.contiguous()}
    return stored | _packed(name, quantized.codes, quantized.bits)


def exported_tensors(stored: Mapping[str, Tensor], linears: Iterable[QuantizedLinear]) -> dict[str, Tensor]:
    """A block's tensors as its checkpoint names them: int8 codes are packed where the linear's format wants that."""
    state = dict(stored)
    for linear in linears:
        weight = f"{linear.name}.weight"
        if linear.format is CompressionFormat.pack_quantized and weight in state:
            state |= _packed(linear.name, state.pop(weight), _BYTE)
    return state


def unpacked_state(stored: Mapping[str, Tensor], linears: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """A block's stored tensors with every quantized weight as the dense ``<name>.weight`` that it stands for."""
    state = dict(stored)
    for name, linear in linears.items():
        packed = f"{name}.weight_packed" in state
        keys = ("weight_packed", "weight_scale", "weight_shape") if packed else ("weight", "weight_scale")
        compressor = PackedQuantizationCompressor if packed else NaiveQuantizationCompressor
        parts = {key: state.pop(f"{name}.{key}") for key in keys}
        state[f"{name}.weight"] = compressor.decompress(parts, linear.scheme())["weight"]
    return state


def _packed(name: str, codes_OI: Tensor, bits: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight_packed": pack_to_int32(codes_OI, bits).contiguous(),
        f"{name}.weight_shape": torch.tensor(codes_OI.shape),
    }


def _input_arguments(activations: ActivationQuantization) -> QuantizationArgs | None:
    """Dynamic, symmetric, one scale a token."""
    if activations.format.bits is None:
        return None
    return QuantizationArgs(
        num_bits=activations.format.bits,
        type=_number_type(activations.format),
        strategy=QuantizationStrategy.TOKEN,
        symmetric=True,
        dynamic=True,
    )


def _number_type(number_format: NumberFormat) -> QuantizationType:
    return QuantizationType.FLOAT if number_format.is_float else QuantizationType.INT
