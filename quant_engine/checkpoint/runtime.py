"""The quantized forward that a user gets: compressed-tensors' fake quantization behind our online transform.

A dynamic int4 activation is scaled by absmax/7.5 there (its range is symmetric about −0.5), while the layer errors of a
report use the paper's absmax/7. Perplexity and the gate are about what is shipped, so they use this.
"""

from collections.abc import Mapping

from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import set_forward_quantized
from torch import Tensor, nn

from quant_engine.checkpoint.online import attach_online
from quant_engine.checkpoint.packing import QuantizedLinear, quantization_scheme


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
