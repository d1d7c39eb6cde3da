"""Which layout each pair of number formats gets, and that no layout changes a weight."""

import pytest
import torch

from quant_engine.checkpoint import OnlineInput, QuantizedLinear, exported_tensors, packed_tensors, unpacked_state
from quant_engine.grids import quantize_weight
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization

INT4, INT8, FP8, NONE = NumberFormat.INT4, NumberFormat.INT8, NumberFormat.FP8, NumberFormat.NONE


def _linear(weights: NumberFormat, activations: NumberFormat, group_size: int | None = None) -> QuantizedLinear:
    granularity = "channel" if group_size is None else "group"
    return QuantizedLinear(
        name="block.linear",
        weights=WeightQuantization(format=weights, granularity=granularity, group_size=group_size),
        activations=ActivationQuantization(format=activations),
        online=OnlineInput(),
    )


@pytest.mark.parametrize(
    ("linear", "layout", "stored"),
    [
        (_linear(INT4, INT4), "pack-quantized", {"weight_packed", "weight_scale", "weight_shape"}),
        (_linear(INT4, NONE, 16), "pack-quantized", {"weight_packed", "weight_scale", "weight_shape"}),
        (_linear(INT8, NONE), "pack-quantized", {"weight_packed", "weight_scale", "weight_shape"}),
        (_linear(INT8, INT8, 16), "pack-quantized", {"weight_packed", "weight_scale", "weight_shape"}),
        (_linear(INT8, INT8), "int-quantized", {"weight", "weight_scale"}),
        (_linear(FP8, FP8), "float-quantized", {"weight", "weight_scale"}),
        (_linear(FP8, NONE), "float-quantized", {"weight", "weight_scale"}),
    ],
)
def test_a_layout_holds_the_weight_bit_for_bit(linear: QuantizedLinear, layout: str, stored: set[str]) -> None:
    w_OI = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    quantized = quantize_weight(w_OI, linear.weights)
    block = packed_tensors(linear.name, quantized)
    exported = exported_tensors(block, [linear])
    assert linear.scheme().format == layout
    assert exported.keys() == {f"block.linear.{key}" for key in stored}
    for tensors in (block, exported):
        state = unpacked_state(tensors | {"block.norm": torch.ones(1)}, {linear.name: linear})
        assert state.keys() == {"block.linear.weight", "block.norm"}
        assert torch.equal(state["block.linear.weight"], quantized.dequantize())


def test_activations_are_rounded_per_token_in_their_own_format() -> None:
    arguments = _linear(INT4, INT8).scheme().input_activations
    assert arguments is not None
    assert (arguments.num_bits, arguments.type, arguments.strategy, arguments.dynamic) == (8, "int", "token", True)
    arguments = _linear(FP8, FP8).scheme().input_activations
    assert arguments is not None
    assert (arguments.num_bits, arguments.type) == (8, "float")
    assert _linear(INT4, NONE).scheme().input_activations is None
