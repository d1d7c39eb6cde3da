"""Quantize and dequantize tensors in all number formats and granularities, with gradients where they are needed."""

from quant_engine.grids.activations import fake_quantize_activation
from quant_engine.grids.clip import mse_clip_ratio, rounded_on
from quant_engine.grids.float4 import MxFloat4Grid, NvFloat4Grid, e4m3, e8m0, global_scale, power_of_two_step
from quant_engine.grids.formats import Float8Grid, IntegerGrid, export_dtype, grid_of, joined_grids
from quant_engine.grids.grid import Grid
from quant_engine.grids.quantize import (
    Quantized,
    codes_on_scale,
    fake_quantize_weight,
    misfitting_groups,
    nearest_divisors,
    quantized_codes,
    shared_peak,
    weight_grid,
    weight_scale,
    weight_zero_points,
)
from quant_engine.grids.straight_through import fake_quantize_on_grid
from quant_engine.online.grid import largest_code

__all__ = [
    "Float8Grid",
    "Grid",
    "IntegerGrid",
    "MxFloat4Grid",
    "NvFloat4Grid",
    "Quantized",
    "codes_on_scale",
    "e4m3",
    "e8m0",
    "export_dtype",
    "fake_quantize_activation",
    "fake_quantize_on_grid",
    "fake_quantize_weight",
    "global_scale",
    "grid_of",
    "joined_grids",
    "largest_code",
    "misfitting_groups",
    "mse_clip_ratio",
    "nearest_divisors",
    "power_of_two_step",
    "quantized_codes",
    "rounded_on",
    "shared_peak",
    "weight_grid",
    "weight_scale",
    "weight_zero_points",
]
