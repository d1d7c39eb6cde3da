"""Rounding to nearest happens on the transformed weight, and costs at most half a step anywhere."""

import pytest
import torch

from quant_engine.errors import UnsupportedPolicy
from quant_engine.policy import NumberFormat, Transform, TransformKind, WeightQuantization
from quant_engine.rounding import round_to_nearest
from quant_engine.transforms import build_plan, transform_weight
from tests.unit.quant_engine.definitions import channel_statistics
from tests.unit.quant_engine.outliers import massive_input, weight


@pytest.mark.parametrize("kind", list(TransformKind))
@pytest.mark.parametrize("number_format", [NumberFormat.INT4, NumberFormat.INT8])
def test_codes_are_the_nearest_to_the_transformed_weight(kind: TransformKind, number_format: NumberFormat) -> None:
    x_TI, w_OI = massive_input(32, 96), weight(8, 96)
    plan = build_plan(Transform(kind=kind), channel_statistics(x_TI), w_OI, tokens=lambda: x_TI)
    transformed_OI = transform_weight(w_OI, plan)
    rounded = round_to_nearest(transformed_OI, WeightQuantization(format=number_format), torch.float32)
    assert ((rounded.dequantize() - transformed_OI).abs() <= rounded.scale * 0.50001).all()
    top = 7 if number_format is NumberFormat.INT4 else 127
    assert rounded.codes.abs().amax(dim=1).tolist() == [top] * 8
    torch.testing.assert_close(rounded.scale * top, transformed_OI.abs().amax(dim=1, keepdim=True))


def test_no_format_has_no_codes() -> None:
    with pytest.raises(UnsupportedPolicy):
        round_to_nearest(weight(8, 96), WeightQuantization(format=NumberFormat.NONE), torch.float32)
