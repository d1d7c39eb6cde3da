"""The quantized forward of an exported model: our online transform, then the rounding of the linear's input.

Perplexity and the loader use the grid of engines. The gate of a checkpoint that plain transformers loads compares on
that of compressed-tensors (docs/decisions/0031).
"""

from compressed_tensors.quantization import QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import set_forward_quantized
from torch import nn

from quant_engine.checkpoint.online import OnlineInput, attach_online
from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.models.served_inputs import ActivationGrid, released_integers


def prepare_quantized(
    linear: nn.Module, settings: QuantizedLinear, grid: ActivationGrid = ActivationGrid.ENGINES
) -> None:
    """Make a plain linear compute like the linear of the loaded checkpoint.

    Its tensors have to be those of :func:`quant_engine.checkpoint.unpacked_state`.
    """
    linear.quantization_scheme = settings.scheme()
    if settings.input_global_scale is not None:
        linear.input_global_scale = nn.Parameter(settings.input_global_scale, requires_grad=False)
    # The weight is dequantized already; with this status compressed-tensors rounds the input only.
    linear.quantization_status = QuantizationStatus.DECOMPRESSED
    set_forward_quantized(linear)
    attach_served(linear, settings.online, grid)


def attach_served(linear: nn.Module, online: OnlineInput, grid: ActivationGrid) -> None:
    """Transform the input of ``linear`` before every forward, and round it on ``grid``.

    Args:
        linear: has a ``quantization_scheme`` of compressed-tensors, and its forward.
    """
    attach_online(linear, online, released_integers(linear, grid))
