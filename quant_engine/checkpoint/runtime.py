"""The quantized forward of an exported model: our online transform, then compressed-tensors' fake quantization.

It scales a dynamic int4 activation by absmax/7.5 (its range is symmetric about −0.5), while the layer errors of a
report use the paper's absmax/7. Perplexity and the gate measure what a user gets, so they use this forward
(docs/decisions/0005).
"""

from compressed_tensors.quantization import QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import set_forward_quantized
from torch import nn

from quant_engine.checkpoint.online import attach_online
from quant_engine.checkpoint.packing import QuantizedLinear


def prepare_quantized(linear: nn.Module, settings: QuantizedLinear) -> None:
    """Make a plain linear compute like the linear of the loaded checkpoint.

    Its tensors have to be those of :func:`quant_engine.checkpoint.unpacked_state`.
    """
    linear.quantization_scheme = settings.scheme()
    if settings.input_global_scale is not None:
        linear.input_global_scale = nn.Parameter(settings.input_global_scale, requires_grad=False)
    # The weight is dequantized already; with this status compressed-tensors rounds the input only.
    linear.quantization_status = QuantizationStatus.DECOMPRESSED
    set_forward_quantized(linear)
    attach_online(linear, settings.online)
