"""The reference path: the weight dequantized once, inputs rounded as measured, and a plain matrix product.

It serves formats for which a device has no kernel, at the memory of an unquantized model.

Shapes: T tokens, O output and I input channels, G groups of an output channel.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ChannelQuantScaleParameter,
    GroupQuantScaleParameter,
    ModelWeightParameter,
    PackedvLLMParameter,
    PerTensorScaleParameter,
)

_WORD = 32
_FLOAT4 = (CompressionFormat.nvfp4_pack_quantized, CompressionFormat.mxfp4_pack_quantized)


class ReferenceLinearMethod(LinearMethodBase):
    """Computes with the dequantized weight.

    Args:
        weights, inputs: how the checkpoint rounds them; ``inputs`` is None where nothing is left to round.
        layout: compressed-tensors' name of the layout of the weight.
    """

    def __init__(self, weights: QuantizationArgs, inputs: QuantizationArgs | None, layout: str):
        self.weights = weights
        self.inputs = inputs
        self.layout = CompressionFormat(layout)
        self.scheme = QuantizationScheme(
            targets=["Linear"], weights=weights, input_activations=inputs, format=self.layout
        )

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Create the parameters that the checkpoint stores."""
        del input_size, output_size
        loader = extra_weight_attrs["weight_loader"]
        layer.reference_rows = output_partition_sizes
        layer.reference_dtype = params_dtype
        rows = sum(output_partition_sizes)
        for name, parameter in self._parameters(rows, input_size_per_partition, len(output_partition_sizes), loader):
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Dequantize every linear that was merged into this one, and keep the dense weight alone."""
        stored = {name: parameter.data for name, parameter in layer.named_parameters(recurse=False) if name != "bias"}
        g_1 = stored.pop("input_global_scale", None)
        dense, first = [], 0
        for index, rows in enumerate(layer.reference_rows):
            part = {name: _rows_of(tensor, first, rows, index) for name, tensor in stored.items()}
            if "weight_packed" in part and self.layout is CompressionFormat.pack_quantized:
                packed = part["weight_packed"].shape[1] * _WORD // self.weights.num_bits
                columns = part["weight_scale"].shape[1] * (self.weights.group_size or packed)
                part["weight_shape"] = torch.tensor([rows, min(columns, packed)])
            compressor = BaseCompressor.get_value_from_registry(self.layout.value)
            dense.append(compressor.decompress(part, self.scheme)["weight"])
            first += rows
        for name in [*stored, *(["input_global_scale"] if g_1 is not None else [])]:
            delattr(layer, name)
        weight_OI = torch.cat(dense).to(layer.reference_dtype)
        layer.register_parameter("weight", nn.Parameter(weight_OI, requires_grad=False))
        if g_1 is not None:
            # Linears that are merged share their input, and so its scale.
            layer.register_buffer("reference_input_scale", g_1.max().reshape(1), persistent=False)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return Q(X) Wᵀ [..., O]."""
        if self.inputs is not None:
            x = self._rounded(x, getattr(layer, "reference_input_scale", None))
        return nn.functional.linear(x, layer.weight, bias)

    def _rounded(self, x: Tensor, g_1: Tensor | None) -> Tensor:
        # compressed-tensors takes the first two axes for samples and tokens.
        x_BTI = x.reshape(1, -1, x.shape[-1])
        scale, zero = compute_dynamic_scales_and_zp(x_BTI, self.inputs, None, global_scale=g_1)
        return fake_quantize(x_BTI, scale, zero, self.inputs, global_scale=g_1).reshape(x.shape)

    def _parameters(
        self, rows: int, columns: int, parts: int, loader: Callable[..., None]
    ) -> list[tuple[str, nn.Parameter]]:
        found: list[tuple[str, nn.Parameter]] = []
        bits = self.weights.num_bits
        if self.layout is CompressionFormat.pack_quantized:
            words = -(-columns * bits // _WORD)
            factor: Any = Fraction(_WORD, bits)
            found.append(("weight_packed", _packed(torch.empty(rows, words, dtype=torch.int32), factor, loader)))
            shape = BasevLLMParameter(data=torch.empty(2, dtype=torch.int64), weight_loader=loader)
            found.append(("weight_shape", shape))
            if not self.weights.symmetric:
                raise NotImplementedError("The reference path has no zero points of weights.")
        elif self.layout in _FLOAT4:
            data = torch.empty(rows, columns // 2, dtype=torch.uint8)
            found.append(
                ("weight_packed", ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=loader))
            )
        else:
            kind = torch.int8 if self.weights.type == "int" else torch.float8_e4m3fn
            data = torch.empty(rows, columns, dtype=kind)
            found.append(("weight", ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=loader)))
        found.append(("weight_scale", self._scale(rows, columns, parts, loader)))
        if self.layout is CompressionFormat.nvfp4_pack_quantized:
            names = ["weight_global_scale", *(["input_global_scale"] if self.inputs is not None else [])]
            found += [
                (name, PerTensorScaleParameter(data=torch.empty(parts, dtype=torch.float32), weight_loader=loader))
                for name in names
            ]
        return found

    def _scale(self, rows: int, columns: int, parts: int, loader: Callable[..., None]) -> nn.Parameter:
        dtype = self.weights.scale_dtype or torch.float32
        strategy = self.weights.strategy
        if strategy == QuantizationStrategy.TENSOR:
            return PerTensorScaleParameter(data=torch.empty(parts, dtype=dtype), weight_loader=loader)
        if strategy == QuantizationStrategy.CHANNEL:
            return ChannelQuantScaleParameter(
                data=torch.empty(rows, 1, dtype=dtype), output_dim=0, weight_loader=loader
            )
        groups = columns // self.weights.group_size
        return GroupQuantScaleParameter(
            data=torch.empty(rows, groups, dtype=dtype), output_dim=0, input_dim=1, weight_loader=loader
        )


def _packed(data: Tensor, factor: Any, loader: Callable[..., None]) -> nn.Parameter:
    return PackedvLLMParameter(
        data=data, input_dim=1, output_dim=0, packed_factor=factor, packed_dim=1, weight_loader=loader
    )


def _rows_of(tensor: Tensor, first: int, rows: int, index: int) -> Tensor:
    """Return the part of one of the merged linears: its rows, or its scale of the whole tensor."""
    if tensor.ndim == 1:
        return tensor if tensor.dtype == torch.int64 else tensor[index : index + 1]
    return tensor[first : first + rows]
