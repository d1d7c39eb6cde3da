"""Number formats and granularities: quantize, dequantize, and the differentiable round trip. Pure functions."""

from quant_engine.grids.clip import mse_clip_ratio
from quant_engine.grids.formats import Float8Grid, Grid, IntegerGrid, grid_of, largest_code
from quant_engine.grids.quantize import (
    Quantized,
    codes_on_scale,
    fake_quantize_activation,
    fake_quantize_weight,
    quantize_weight,
    weight_grid,
    weight_scale,
)
from quant_engine.grids.straight_through import fake_quantize_on_grid, fake_quantize_rows

__all__ = [
    "Float8Grid",
    "Grid",
    "IntegerGrid",
    "Quantized",
    "codes_on_scale",
    "fake_quantize_activation",
    "fake_quantize_on_grid",
    "fake_quantize_rows",
    "fake_quantize_weight",
    "grid_of",
    "largest_code",
    "mse_clip_ratio",
    "quantize_weight",
    "weight_grid",
    "weight_scale",
]
