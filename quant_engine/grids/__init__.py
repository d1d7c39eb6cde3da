"""Number formats and granularities: quantize, dequantize, and the differentiable round trip. Pure functions."""

from quant_engine.grids.quantize import Quantized, fake_quantize_activation, fake_quantize_weight, quantize_weight
from quant_engine.grids.straight_through import fake_quantize_rows, largest_code

__all__ = [
    "Quantized",
    "fake_quantize_activation",
    "fake_quantize_rows",
    "fake_quantize_weight",
    "largest_code",
    "quantize_weight",
]
