"""One grid for each row; a format without one is refused, and never taken for a tensor that is not quantized."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quant_engine.grids import (
    Float8Grid,
    MxFloat4Grid,
    export_dtype,
    fake_quantize_activation,
    fake_quantize_weight,
    grid_of,
    joined_grids,
    weight_scale,
)
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from quant_engine.rounding import round_weight
from tests.unit.quant_engine.made_up import made_up_format
from tests.unit.quant_engine.outliers import weight

FP6 = made_up_format("fp6", NumberFormat.FP8, bits=6)
MXFP8 = made_up_format("mxfp8", NumberFormat.MXFP4, bits=8)
_WEIGHTS = WeightQuantization.model_construct(format=FP6)
_ACTIVATIONS = ActivationQuantization.model_construct(format=FP6)


@pytest.mark.parametrize("number_format", NumberFormat)
def test_every_row_has_the_grid_that_it_describes(number_format: NumberFormat) -> None:
    grid = grid_of(number_format)
    assert (grid is None) == (number_format is NumberFormat.NONE)
    if grid is None:
        return
    assert grid.bits == number_format.bits
    assert grid.storage.is_floating_point == number_format.is_float
    v_RG = weight(4, number_format.group_size or 32)
    fitted = grid.fitted(v_RG)
    assert (fitted.global_scale is not None) == number_format.spec.static_peak
    scale_R1 = fitted.step(v_RG.abs().amax(dim=1, keepdim=True), 1.0)
    stored_R1 = fitted.stored_scale(scale_R1)
    assert stored_R1.dtype == (scale_R1.dtype if grid.scale_storage is None else grid.scale_storage)
    error_RG = fitted.nearest_(v_RG / scale_R1) * scale_R1 - v_RG
    assert error_RG.abs().max() < v_RG.abs().max()
    dtype = export_dtype(number_format)
    assert str(dtype).removeprefix("torch.") == str(number_format.spec.export_dtype)


@pytest.mark.parametrize(
    "use",
    [
        lambda _: grid_of(FP6),
        lambda w_OI: weight_scale(w_OI, _WEIGHTS),
        lambda w_OI: fake_quantize_weight(w_OI, _WEIGHTS),
        lambda w_OI: fake_quantize_activation(w_OI, _ACTIVATIONS),
        lambda w_OI: round_weight(w_OI, _WEIGHTS, torch.float32),
    ],
)
def test_a_format_without_a_grid_is_not_left_unquantized(use: Callable[[Tensor], object]) -> None:
    with pytest.raises(KeyError, match="fp6"):
        use(weight(4, 32))


def test_rows_and_grids_are_joined_whole() -> None:
    with pytest.raises(ValueError, match="mxfp8 has a row but no grid"):
        joined_grids([NumberFormat.INT4, MXFP8], {})
    with pytest.raises(ValueError, match="fp6 has 6 bits, but its grid 8"):
        joined_grids([FP6], {FP6: Float8Grid()})
    with pytest.raises(ValueError, match="mxfp8 has groups of 32, but its grid stores scales in None"):
        joined_grids([MXFP8], {MXFP8: Float8Grid()})
    grids = {MXFP8: MxFloat4Grid()}
    with pytest.raises(ValueError, match="mxfp8 has 8 bits, but its grid 4"):
        joined_grids([MXFP8], grids)
    int6 = made_up_format("six", NumberFormat.INT6)
    assert joined_grids([int6, NumberFormat.NONE], {}) == {int6: grid_of(NumberFormat.INT6)}
