"""Round to nearest of a transformed weight. Shapes: O output channels, I input channels."""

from torch import Tensor

from quant_engine.grids import Quantized, quantize_weight
from quant_engine.policy import WeightQuantization
from quant_engine.transforms import SitePlan, transform_weight


def round_to_nearest(w_OI: Tensor, plan: SitePlan, weights: WeightQuantization) -> Quantized:
    """Codes and scales of W' = W Λ Hᵀ for one linear of the site.

    Raises:
        UnsupportedPolicy: ``weights`` has no codes, or a ``group_size`` that does not divide I.
    """
    return quantize_weight(transform_weight(w_OI, plan), weights)
