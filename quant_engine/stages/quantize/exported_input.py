"""Round an input exactly as engines round it for an exported linear, without the linear.

Shapes: B batch, T tokens, I channels, G scales of a token.
"""

from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from torch import Tensor

from quant_engine.checkpoint import QuantizedLinear, served_input


def exported_input(x_TI: Tensor, *, linear: QuantizedLinear) -> Tensor:
    """Return Q(X P): the online transform, then the dynamic rounding of the linear's format.

    Raises:
        ValueError: a primitive does not fit the width.
    """
    x_TI = served_input(x_TI, linear.online, linear.served)
    arguments = linear.scheme().input_activations
    if arguments is None or linear.served is not None:
        return x_TI
    # compressed-tensors takes the first two axes for samples and tokens, so rows alone get a third axis.
    x_BTI = x_TI if x_TI.ndim > 2 else x_TI[None]
    g_1 = linear.input_global_scale
    g_1 = None if g_1 is None else g_1.to(x_TI.device)
    scale_BTG, zero_BTG = compute_dynamic_scales_and_zp(x_BTI, arguments, None, global_scale=g_1)
    rounded: Tensor = fake_quantize(x_BTI, scale_BTG, zero_BTG, arguments, global_scale=g_1)
    return rounded.reshape(x_TI.shape)
