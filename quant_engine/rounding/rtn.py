"""Round to nearest of a transformed weight, for a checkpoint of a given dtype. Shapes: O output channels, I inputs."""

import torch
from torch import Tensor

from quant_engine.grids import Quantized, largest_code, quantize_weight
from quant_engine.policy import WeightQuantization


def round_to_nearest(w_OI: Tensor, spec: WeightQuantization, dtype: torch.dtype) -> Quantized:
    """Codes and scales of W' on the grid whose scales are representable in ``dtype``, the type of the checkpoint.

    In half precision the scale is rounded first and the codes are taken against what it became.

    Args:
        w_OI: W' = W Λ Hᵀ, transformed already.

    Raises:
        UnsupportedPolicy: ``spec`` has no codes, or a ``group_size`` that does not divide I.
    """
    quantized = quantize_weight(w_OI, spec)
    scale = quantized.scale.to(dtype)
    if dtype == w_OI.dtype:
        return quantized
    grouped = w_OI.reshape(*scale.shape, -1) if scale.numel() > 1 else w_OI
    against = scale.to(w_OI.dtype)[..., None] if scale.numel() > 1 else scale.to(w_OI.dtype)
    largest = largest_code(quantized.bits)
    codes = (grouped / against).round_().clamp_(-largest - 1, largest).to(torch.int8).reshape(w_OI.shape)
    return Quantized(codes=codes, scale=scale, bits=quantized.bits)
