"""Convert a linear's quantized weight to the tensors and the layout of compressed-tensors.

A quantized block on disk holds codes of eight bits unpacked, and narrower ones as dense bits. The layout in the
checkpoint depends on the linear's formats, and is chosen when the checkpoint is written: :func:`exported_tensors`.

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
from quant_engine.grids import Quantized, grid_of, weight_grid
from quant_engine.online.grid import ServedIntegers
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from quant_engine.policy.format_spec import Pairing

_BYTE: Final = 8
_WORD: Final = 32
_FLOAT32_BYTES: Final = 4
_STORED_KEYS: Final = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_global_scale",
    "weight_zero_point",
)
# A row that names a layout or a strategy that compressed-tensors does not have fails here, at import.
_LAYOUTS: Final = {each: CompressionFormat(each.spec.layout) for each in NumberFormat if each.quantizes}
_PAIRED: Final = {
    each: CompressionFormat(each.spec.pairing.layout) for each in NumberFormat if each.spec.pairing is not None
}


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """How one linear of an exported model is quantized.

    Attributes:
        input_peak: the absolute value from which the static scale of an NVFP4 input is computed; None for other inputs.
    """

    name: str
    weights: WeightQuantization
    activations: ActivationQuantization
    online: OnlineInput
    input_peak: float | None = None

    @property
    def format(self) -> CompressionFormat:
        """compressed-tensors' layout of the weight, for which runtimes have kernels."""
        return _LAYOUTS[self.weights.format] if self.pairing is None else _PAIRED[self.weights.format]

    @property
    def pairing(self) -> Pairing | None:
        """The special layout for a weight whose input has the same format; None where the weight has its usual one."""
        paired = self.weights.format is self.activations.format and self.weights.granularity != "group"
        return self.weights.format.spec.pairing if paired else None

    @property
    def input_global_scale(self) -> Tensor | None:
        """g of an NVFP4 input, fp32 [1]; None for inputs whose format has no static peak.

        Raises:
            ValueError: the input was not measured.
        """
        grid = grid_of(self.activations.format)
        if grid is None or not self.activations.format.spec.static_peak:
            return None
        if self.input_peak is None:
            raise ValueError(
                f"the {self.activations.format.name} input of {self.name} has no peak to compute its scale from"
            )
        peak = torch.tensor(self.input_peak, dtype=torch.float32)
        return grid.fitted(peak, peak).global_scale

    @property
    def served(self) -> ServedIntegers | None:
        """How engines round the input on a grid of their own; None for all other inputs."""
        activations, bits = self.activations, self.activations.format.bits
        if bits is None or not activations.format.is_integer:
            return None
        return ServedIntegers(bits, activations.group_size, activations.symmetric)

    def scheme(self, targets: list[str] | None = None) -> QuantizationScheme:
        """Return the compressed-tensors scheme; its targets are this linear unless others are given."""
        return QuantizationScheme(
            targets=[self.name] if targets is None else targets,
            weights=_weight_arguments(self.weights),
            input_activations=_input_arguments(self.activations),
            format=self.format,
        )


def packed_tensors(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """Return a quantized weight as the tensors of a block's file.

    ``<name>.weight`` has int8 or float8_e4m3fn codes. Integers below eight bits are ``<name>.weight_packed`` (int32,
    dense bits) and ``<name>.weight_shape``; fp4 is ``<name>.weight_packed`` (uint8, two codes each).
    ``<name>.weight_scale`` has the format's type for scales (e8m0, e4m3) where it defines one. NVFP4 also has
    ``<name>.weight_global_scale``, and weights with zero points ``<name>.weight_zero_point`` (int32, dense bits).

    Raises:
        ValueError: nothing packs floating-point codes of this width.
    """
    stored = _packed_codes(name, quantized)
    if quantized.global_scale is not None:
        stored |= {f"{name}.weight_global_scale": quantized.global_scale}
    if quantized.stored_scale is not None:
        return stored | {f"{name}.weight_scale": quantized.stored_scale.contiguous()}
    if quantized.zero_point is not None:
        # Packed along the outputs, as the weight is along the inputs.
        packed = pack_to_int32(quantized.zero_point, quantized.bits, packed_dim=0)
        stored |= {f"{name}.weight_zero_point": packed.contiguous()}
    # compressed-tensors stores the scale of a whole tensor as [1], not [1, 1].
    scale = quantized.scale.flatten() if quantized.scale.numel() == 1 else quantized.scale
    return stored | {f"{name}.weight_scale": scale.contiguous()}


def exported_tensors(stored: Mapping[str, Tensor], linears: Iterable[QuantizedLinear]) -> dict[str, Tensor]:
    """Return a block's tensors as its checkpoint stores them.

    int8 codes are packed where the linear's layout requires it, and NVFP4 inputs get their
    ``<name>.input_global_scale``.
    """
    state = dict(stored)
    for linear in linears:
        state |= _input_scale(linear, torch.device("cpu"))
        weight = f"{linear.name}.weight"
        if linear.format is CompressionFormat.pack_quantized and weight in state:
            state |= _packed(linear.name, state.pop(weight), _BYTE)
    return state


def unpacked_state(stored: Mapping[str, Tensor], linears: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """Return a block's stored tensors with every quantized weight dequantized to a dense ``<name>.weight``.

    The ``<name>.input_global_scale`` of NVFP4 inputs is added.
    """
    state = dict(stored)
    for name, linear in linears.items():
        parts = {key: state.pop(f"{name}.{key}") for key in _STORED_KEYS if f"{name}.{key}" in state}
        # A block's file holds int8 codes unpacked, even where the checkpoint will pack them.
        unpacked = linear.format is CompressionFormat.pack_quantized and "weight_packed" not in parts
        layout = CompressionFormat.naive_quantized if unpacked else linear.format
        compressor = BaseCompressor.get_value_from_registry(layout.value)
        dense_OI = compressor.decompress(parts, linear.scheme())["weight"]
        state |= {f"{name}.weight": dense_OI} | _input_scale(linear, dense_OI.device)
    return state


def stored_bytes(linear: QuantizedLinear, shape: Sequence[int], scale_bytes: int) -> int:
    """Return the bytes of a linear's codes and scales in the checkpoint, including the static scale of its input.

    Args:
        shape: [O, I] of the weight.
        scale_bytes: the bytes of one scale of integers and fp8, which has the type of the dense tensors.

    Raises:
        ValueError: the linear's weight is not quantized.
    """
    rows, columns = shape
    weights, bits = linear.weights, linear.weights.format.bits
    if bits is None:
        raise ValueError(f"{linear.name} is not quantized")
    groups = {"channel": rows, "tensor": 1, "group": rows * columns // (weights.group_size or columns)}
    storage = weight_grid(weights).scale_storage
    scales = groups[weights.granularity] * (scale_bytes if storage is None else storage.itemsize)
    # One fp32 scale of the input and one of the weight, for formats with a scale of the whole tensor.
    static = _FLOAT32_BYTES * (linear.activations.format.spec.static_peak + weights.format.spec.static_peak)
    if not weights.symmetric:
        scales += _WORD // _BYTE * -(-rows * bits // _WORD) * (groups[weights.granularity] // rows)
    if linear.format is CompressionFormat.pack_quantized:
        # Every row is padded to whole words of 32 bits.
        return _WORD // _BYTE * rows * -(-columns * bits // _WORD) + scales + static
    return rows * columns * bits // _BYTE + scales + static


def _input_scale(linear: QuantizedLinear, device: torch.device) -> dict[str, Tensor]:
    scale_1 = linear.input_global_scale
    return {} if scale_1 is None else {f"{linear.name}.input_global_scale": scale_1.to(device)}


def _packed_codes(name: str, quantized: Quantized) -> dict[str, Tensor]:
    if quantized.bits == _BYTE:
        return {f"{name}.weight": quantized.codes.contiguous()}
    if quantized.is_float4:
        # compressed-tensors has one way to pack on a GPU and one elsewhere. Both take bfloat16, which holds every code.
        return {f"{name}.weight_packed": pack_fp4_to_uint8(quantized.codes.to(torch.bfloat16)).contiguous()}
    if quantized.codes.is_floating_point():
        raise ValueError(f"{name} has floating-point codes of {quantized.bits} bits, which nothing packs")
    return _packed(name, quantized.codes, quantized.bits)


def _packed(name: str, codes_OI: Tensor, bits: int) -> dict[str, Tensor]:
    # The last word of a row may be padded, so the shape can not be read from the packed tensor.
    return {
        f"{name}.weight_packed": pack_to_int32(codes_OI, bits).contiguous(),
        f"{name}.weight_shape": torch.tensor(codes_OI.shape),
    }


def _weight_arguments(weights: WeightQuantization) -> QuantizationArgs:
    spec, scale_type = weights.format.spec, weight_grid(weights).scale_storage
    return QuantizationArgs(
        num_bits=spec.bits,
        type=_number_type(weights.format),
        strategy=QuantizationStrategy(spec.strategy or weights.granularity),
        group_size=weights.group_size,
        symmetric=weights.symmetric,
        dynamic=False,
        scale_dtype=scale_type,
        zp_dtype=scale_type,
    )


def _input_arguments(activations: ActivationQuantization) -> QuantizationArgs | None:
    """Return dynamic arguments: one scale for each token or each of its groups; NVFP4's tensor scale is static."""
    spec, grid = activations.format.spec, grid_of(activations.format)
    if grid is None:
        return None
    return QuantizationArgs(
        num_bits=spec.bits,
        type=_number_type(activations.format),
        strategy=QuantizationStrategy(spec.strategy or activations.granularity),
        group_size=spec.group_size or activations.group_size,
        symmetric=activations.symmetric,
        dynamic=DynamicType.LOCAL if spec.static_peak else True,
        scale_dtype=grid.scale_storage,
        zp_dtype=grid.scale_storage,
    )


def _number_type(number_format: NumberFormat) -> QuantizationType:
    return QuantizationType.FLOAT if number_format.is_float else QuantizationType.INT
