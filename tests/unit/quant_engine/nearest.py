"""A weight rounded to nearest on scales of its own dtype, for tests that need codes."""

from torch import Tensor

from quant_engine.grids import Quantized, codes_on_scale, weight_scale
from quant_engine.policy import WeightQuantization


def quantize_weight(
    w_OI: Tensor,
    spec: WeightQuantization,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
    peak: Tensor | None = None,
) -> Quantized:
    """The nearest codes to a weight [O, I] on the scales of :func:`quant_engine.grids.weight_scale`."""
    scale = weight_scale(w_OI, spec, importance_I=importance_I, clip_ratio_R1=clip_ratio_R1, peak=peak)
    return codes_on_scale(w_OI, spec, scale, peak=peak)
