"""The quantized forward that a user gets: compressed-tensors' fake quantization behind our online transform.

A dynamic int4 activation is scaled by absmax/7.5 there (its range is symmetric about −0.5), while the layer errors of a
report use the paper's absmax/7. Perplexity and the gate are about what is shipped, so they use this.
"""

from compressed_tensors.quantization import QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import set_forward_quantized
from torch import nn

from quant_engine.checkpoint.online import attach_online
from quant_engine.checkpoint.packing import QuantizedLinear


def prepare_quantized(linear: nn.Module, settings: QuantizedLinear) -> None:
    """Make a plain linear compute like the loaded checkpoint's.

    Its tensors have to be those of :func:`quant_engine.checkpoint.unpacked_state`.
    """
    linear.quantization_scheme = settings.scheme()
    if settings.input_global_scale is not None:
        linear.input_global_scale = nn.Parameter(settings.input_global_scale, requires_grad=False)
    linear.quantization_status = QuantizationStatus.DECOMPRESSED
    set_forward_quantized(linear)
    attach_online(linear, settings.online)
