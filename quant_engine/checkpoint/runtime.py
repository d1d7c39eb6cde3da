"""The quantized forward that a user gets: compressed-tensors' fake quantization behind our online rotation.

A dynamic int4 activation is scaled by absmax/7.5 there (its range is symmetric about −0.5), while the layer errors of a
report use the paper's absmax/7. Perplexity and the gate are about what is shipped, so they use this.

Shapes: T tokens, I input channels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import set_forward_quantized
from torch import Tensor, nn

from quant_engine.checkpoint.packing import OnlineInput, QuantizedLinear, quantization_scheme
from quant_engine.hadamard import online_hadamard


def attach_online(linear: nn.Module, online: OnlineInput) -> None:
    """Rotate, and clip, the input of ``linear`` before every forward."""
    if online.is_identity:
        return

    def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x_TI: Tensor = arguments[0]
        if online.order is not None:
            x_TI = online_hadamard(x_TI, online.order)
        if online.clip_ratio < 1.0:
            limit_T1 = x_TI.abs().amax(dim=-1, keepdim=True) * online.clip_ratio
            x_TI = torch.clamp(x_TI, min=-limit_T1, max=limit_T1)
        return (x_TI, *arguments[1:])

    linear.register_forward_pre_hook(before, prepend=True)


def prepare_quantized(linear: nn.Module, settings: QuantizedLinear) -> None:
    """Make a plain linear compute like the loaded checkpoint's; its ``weight`` has to be the dequantized one."""
    linear.quantization_scheme = quantization_scheme(settings.weights, settings.activations, [settings.name])
    linear.quantization_status = QuantizationStatus.DECOMPRESSED
    set_forward_quantized(linear)
    attach_online(linear, settings.online)


def unpacked_state(stored: Mapping[str, Tensor], linears: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """A block's stored tensors with every packed weight as the dense ``<name>.weight`` that it stands for."""
    state = dict(stored)
    for name, settings in linears.items():
        packed = {key: state.pop(f"{name}.{key}") for key in ("weight_packed", "weight_scale", "weight_shape")}
        scheme = quantization_scheme(settings.weights, settings.activations, [name])
        state[f"{name}.weight"] = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    return state
