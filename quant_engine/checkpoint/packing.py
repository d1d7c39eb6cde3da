"""A linear's quantized weight as compressed-tensors stores it, in the layout that its number formats call for.

A quantized block on disk holds codes of eight bits as they are, and narrower ones as dense bits. Which of the two
compressed-tensors' format of a linear means is settled where the checkpoint is written: :func:`exported_tensors`.

Shapes: O output channels, I input channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    DynamicType,
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    QuantizationType,
)
from torch import Tensor

from quant_engine.checkpoint.online import OnlineInput
from quant_engine.grids import Quantized, e4m3, e8m0, global_scale
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization

_BYTE: Final = 8
_WORD: Final = 32
_FLOAT_LAYOUTS: Final = {
    NumberFormat.FP8: CompressionFormat.float_quantized,
    NumberFormat.NVFP4: CompressionFormat.nvfp4_pack_quantized,
    NumberFormat.MXFP4: CompressionFormat.mxfp4_pack_quantized,
}
_GROUPED: Final = {
    NumberFormat.NVFP4: (QuantizationStrategy.TENSOR_GROUP, torch.float8_e4m3fn),
    NumberFormat.MXFP4: (QuantizationStrategy.GROUP, torch.uint8),
}
"""compressed-tensors' strategy and the type of a stored scale, for formats with groups of their own."""
_SCALE_BYTES: Final = 1
"""Of a stored scale of theirs."""
_FLOAT32_BYTES: Final = 4
_STORED_KEYS: Final = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_global_scale")
_STRATEGIES: Final = {
    "channel": QuantizationStrategy.CHANNEL,
    "group": QuantizationStrategy.GROUP,
    "tensor": QuantizationStrategy.TENSOR,
}


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """How one linear of an exported model is quantized.

    Attributes:
        input_peak: the absolute value that the static scale of an NVFP4 input is for; None for other inputs.
    """

    name: str
    weights: WeightQuantization
    activations: ActivationQuantization
    online: OnlineInput
    input_peak: float | None = None

    @property
    def format(self) -> CompressionFormat:
        """compressed-tensors' layout of the weight: the one that runtimes have kernels for."""
        if self.weights.format in _FLOAT_LAYOUTS:
            return _FLOAT_LAYOUTS[self.weights.format]
        bytewise = self.weights.format is NumberFormat.INT8 and self.activations.format is NumberFormat.INT8
        if bytewise and self.weights.granularity != "group":
            return CompressionFormat.int_quantized
        return CompressionFormat.pack_quantized

    @property
    def input_global_scale(self) -> Tensor | None:
        """g of an NVFP4 input, fp32 [1]; None for other inputs.

        Raises:
            ValueError: nobody has measured the input.
        """
        if self.activations.format is not NumberFormat.NVFP4:
            return None
        if self.input_peak is None:
            raise ValueError(f"the NVFP4 input of {self.name} has no peak that its scale could be for")
        return global_scale(torch.tensor(self.input_peak, dtype=torch.float32))

    def scheme(self, targets: list[str] | None = None) -> QuantizationScheme:
        """The compressed-tensors scheme; its targets are this linear unless others are given."""
        return QuantizationScheme(
            targets=[self.name] if targets is None else targets,
            weights=_weight_arguments(self.weights),
            input_activations=_input_arguments(self.activations),
            format=self.format,
        )


def packed_tensors(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """A quantized weight as a block's file holds it, with ``<name>.weight_scale``.

    ``<name>.weight`` are int8 or float8_e4m3fn codes; below eight bits it is ``<name>.weight_packed`` (int32, dense
    bits) and ``<name>.weight_shape``. fp4 is ``<name>.weight_packed`` (uint8, two codes each), with e8m0 scales or, for
    NVFP4, e4m3 ones and ``<name>.weight_global_scale``.
    """
    if quantized.is_float4:
        return _packed_float4(name, quantized)
    scale = quantized.scale.flatten() if quantized.scale.numel() == 1 else quantized.scale
    stored = {f"{name}.weight_scale": scale.contiguous()}
    if quantized.bits == _BYTE:
        return stored | {f"{name}.weight": quantized.codes.contiguous()}
    return stored | _packed(name, quantized.codes, quantized.bits)


def exported_tensors(stored: Mapping[str, Tensor], linears: Iterable[QuantizedLinear]) -> dict[str, Tensor]:
    """A block's tensors as its checkpoint names them: int8 codes are packed where the linear's format wants that, and
    NVFP4 inputs get their ``<name>.input_global_scale``."""
    state = dict(stored)
    for linear in linears:
        state |= _input_scale(linear, torch.device("cpu"))
        weight = f"{linear.name}.weight"
        if linear.format is CompressionFormat.pack_quantized and weight in state:
            state |= _packed(linear.name, state.pop(weight), _BYTE)
    return state


def unpacked_state(stored: Mapping[str, Tensor], linears: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """A block's stored tensors with every quantized weight as the dense ``<name>.weight`` that it stands for, and the
    ``<name>.input_global_scale`` of NVFP4 inputs."""
    state = dict(stored)
    for name, linear in linears.items():
        parts = {key: state.pop(f"{name}.{key}") for key in _STORED_KEYS if f"{name}.{key}" in state}
        # A block's file holds int8 codes as they are, whatever the checkpoint's layout.
        layout = linear.format if "weight_packed" in parts else CompressionFormat.naive_quantized
        compressor = BaseCompressor.get_value_from_registry(layout.value)
        dense_OI = compressor.decompress(parts, linear.scheme())["weight"]
        state |= {f"{name}.weight": dense_OI} | _input_scale(linear, dense_OI.device)
    return state


def stored_bytes(linear: QuantizedLinear, shape: Sequence[int], scale_bytes: int) -> int:
    """Bytes of a linear's codes and scales in the checkpoint, static ones of its input among them.

    Args:
        shape: [O, I] of the weight.
        scale_bytes: of one scale of integers and fp8, which is in the type of the dense tensors.
    """
    rows, columns = shape
    groups = {"channel": rows, "tensor": 1, "group": rows * columns // (linear.weights.group_size or columns)}
    scales = groups[linear.weights.granularity]
    static = _FLOAT32_BYTES * (linear.activations.format is NumberFormat.NVFP4)
    if linear.weights.format in _GROUPED:
        static += _FLOAT32_BYTES * (linear.weights.format is NumberFormat.NVFP4)
        return rows * columns // 2 + _SCALE_BYTES * scales + static
    bits = linear.weights.format.bits or 0
    if linear.format is not CompressionFormat.pack_quantized:
        return rows * columns * bits // _BYTE + scale_bytes * scales
    return _WORD // _BYTE * rows * -(-columns * bits // _WORD) + scale_bytes * scales


def _input_scale(linear: QuantizedLinear, device: torch.device) -> dict[str, Tensor]:
    scale_1 = linear.input_global_scale
    return {} if scale_1 is None else {f"{linear.name}.input_global_scale": scale_1.to(device)}


def _packed_float4(name: str, quantized: Quantized) -> dict[str, Tensor]:
    # compressed-tensors packs on any device in its own way; both take bfloat16, which holds every code.
    stored = {f"{name}.weight_packed": pack_fp4_to_uint8(quantized.codes.to(torch.bfloat16)).contiguous()}
    if quantized.global_scale is None:
        return stored | {f"{name}.weight_scale": e8m0(quantized.scale).contiguous()}
    return stored | {
        f"{name}.weight_scale": e4m3(quantized.scale * quantized.global_scale).contiguous(),
        f"{name}.weight_global_scale": quantized.global_scale,
    }


def _packed(name: str, codes_OI: Tensor, bits: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight_packed": pack_to_int32(codes_OI, bits).contiguous(),
        f"{name}.weight_shape": torch.tensor(codes_OI.shape),
    }


def _weight_arguments(weights: WeightQuantization) -> QuantizationArgs:
    strategy, scale_type = _GROUPED.get(weights.format, (_STRATEGIES[weights.granularity], None))
    return QuantizationArgs(
        num_bits=weights.format.bits,
        type=_number_type(weights.format),
        strategy=strategy,
        group_size=weights.group_size,
        symmetric=True,
        dynamic=False,
        scale_dtype=scale_type,
        zp_dtype=scale_type,
    )


def _input_arguments(activations: ActivationQuantization) -> QuantizationArgs | None:
    """Dynamic, symmetric, one scale a token, or one for each of its groups; NVFP4's tensor scale is static."""
    if activations.format.bits is None:
        return None
    if activations.format in _GROUPED:
        strategy, scale_type = _GROUPED[activations.format]
        return QuantizationArgs(
            num_bits=activations.format.bits,
            type=QuantizationType.FLOAT,
            strategy=strategy,
            group_size=activations.format.group_size,
            symmetric=True,
            dynamic=DynamicType.LOCAL if activations.format is NumberFormat.NVFP4 else True,
            scale_dtype=scale_type,
            zp_dtype=scale_type,
        )
    return QuantizationArgs(
        num_bits=activations.format.bits,
        type=_number_type(activations.format),
        strategy=QuantizationStrategy.TOKEN,
        symmetric=True,
        dynamic=True,
    )


def _number_type(number_format: NumberFormat) -> QuantizationType:
    return QuantizationType.FLOAT if number_format.is_float else QuantizationType.INT
