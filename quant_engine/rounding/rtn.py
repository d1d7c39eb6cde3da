"""Round a transformed weight to nearest, for a checkpoint of a given dtype.

Shapes: O output channels, I inputs, R rows of values that share a scale.
"""

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.grids import Quantized, codes_on_scale, weight_grid, weight_scale
from quant_engine.policy import WeightQuantization


def round_to_nearest(
    w_OI: Tensor,
    spec: WeightQuantization,
    dtype: torch.dtype,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
    peak: Tensor | None = None,
) -> Quantized:
    """Return codes and scales of W'; the scales are representable in ``dtype``, the type of the checkpoint.

    In half precision the scale is rounded first, and the codes are computed for the rounded scale.

    Args:
        w_OI: W' = W A⁻ᵀ, transformed already.
        importance_I, clip_ratio_R1, peak: as for :func:`quant_engine.grids.weight_scale`.

    Raises:
        UnsupportedPolicy: ``spec`` has no codes, or a ``group_size`` that does not divide I.
        NumericalInstability: the weight is not finite, or a scale of it in ``dtype``.
    """
    with torch.no_grad():
        scale = weight_scale(w_OI, spec, importance_I=importance_I, clip_ratio_R1=clip_ratio_R1, peak=peak)
        return codes_on_scale(w_OI, spec, representable_scale(scale, w_OI, scale_dtype(spec, dtype)), peak=peak)


def scale_dtype(spec: WeightQuantization, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a scale in a checkpoint of ``dtype``; fp32 for formats that define a type for scales (fp4)."""
    # Such a scale is rounded to the format's type already, and fp32 holds it exactly.
    return dtype if weight_grid(spec).scale_storage is None else torch.float32


def representable_scale(scale: Tensor, w_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``scale`` in ``dtype``, and 1 where it is zero there; the codes of such values are all 0.

    Raises:
        NumericalInstability: the weight is not finite, or a scale of it in ``dtype``.
    """
    found = scale.to(dtype)
    if not bool(torch.isfinite(w_OI).all() & torch.isfinite(found).all()):
        raise NumericalInstability(
            detail=f"A transformed weight, or a scale of it in {dtype}, is not finite.",
            hint="Check the model's weights for NaN or infinity; export in float32 or bfloat16 if they are that large.",
        )
    return torch.where(found > 0, found, torch.ones_like(found))
