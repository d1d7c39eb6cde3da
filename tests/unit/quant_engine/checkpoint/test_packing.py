"""Which layout each pair of number formats gets, and that no layout changes a weight."""

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization.quant_scheme import MXFP4, MXFP4A16, NVFP4, NVFP4A16, QuantizationScheme

from quant_engine.checkpoint import (
    OnlineInput,
    QuantizedLinear,
    exported_tensors,
    packed_tensors,
    stored_bytes,
    unpacked_state,
)
from quant_engine.grids import global_scale
from quant_engine.policy import ActivationQuantization, NumberFormat, WeightQuantization
from tests.unit.quant_engine.nearest import quantize_weight

INT4, INT8, FP8, NONE = NumberFormat.INT4, NumberFormat.INT8, NumberFormat.FP8, NumberFormat.NONE
NV, MX = NumberFormat.NVFP4, NumberFormat.MXFP4
_PACKED4 = {"weight_packed", "weight_scale"}


def _linear(weights: NumberFormat, activations: NumberFormat, group_size: int | None = None) -> QuantizedLinear:
    group_size = group_size or weights.group_size
    granularity = "channel" if group_size is None else "group"
    return QuantizedLinear(
        name="block.linear",
        weights=WeightQuantization(format=weights, granularity=granularity, group_size=group_size),
        activations=ActivationQuantization(format=activations),
        online=OnlineInput(),
        input_peak=3.0,
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
        (_linear(NV, NV), "nvfp4-pack-quantized", _PACKED4 | {"weight_global_scale", "input_global_scale"}),
        (_linear(NV, NONE), "nvfp4-pack-quantized", _PACKED4 | {"weight_global_scale"}),
        (_linear(MX, MX), "mxfp4-pack-quantized", _PACKED4),
        (_linear(MX, NONE), "mxfp4-pack-quantized", _PACKED4),
    ],
)
def test_a_layout_holds_the_weight_bit_for_bit(linear: QuantizedLinear, layout: str, stored: set[str]) -> None:
    w_OI = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    quantized = quantize_weight(w_OI, linear.weights)
    block = packed_tensors(linear.name, quantized)
    exported = exported_tensors(block, [linear])
    assert linear.scheme().format == layout
    assert exported.keys() == {f"block.linear.{key}" for key in stored}
    sized = {key: tensor for key, tensor in exported.items() if not key.endswith("weight_shape")}
    assert sum(tensor.nbytes for tensor in sized.values()) == stored_bytes(linear, w_OI.shape, scale_bytes=4)
    static = {key for key in exported if key.endswith("input_global_scale")}
    for tensors in (block, exported):
        state = unpacked_state(tensors | {"block.norm": torch.ones(1)}, {linear.name: linear})
        assert state.keys() == {"block.linear.weight", "block.norm"} | static
        assert torch.equal(state["block.linear.weight"], quantized.dequantize())


@pytest.mark.parametrize(
    ("linear", "scheme"),
    [(_linear(NV, NV), NVFP4), (_linear(NV, NONE), NVFP4A16), (_linear(MX, MX), MXFP4), (_linear(MX, NONE), MXFP4A16)],
)
def test_fp4_is_the_preset_of_compressed_tensors_and_packed_as_by_it(
    linear: QuantizedLinear, scheme: dict[str, object]
) -> None:
    ours, theirs = linear.scheme(), QuantizationScheme(targets=[linear.name], **scheme, format=linear.format)
    told = {"weights": {"observer": True}, "input_activations": {"observer": True}}  # how theirs would be calibrated
    assert ours.model_dump(exclude=told) == theirs.model_dump(exclude=told)
    w_OI = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    w_OI[2] = 0.0
    quantized = quantize_weight(w_OI, linear.weights)
    scale = quantized.scale
    parts = {"weight": w_OI}
    if quantized.global_scale is not None:
        scale = (scale * quantized.global_scale).to(torch.float8_e4m3fn).float()
        parts["weight_global_scale"] = quantized.global_scale
    compressor = BaseCompressor.get_value_from_registry(str(linear.format.value))
    expected = compressor.compress(parts | {"weight_scale": scale}, theirs)
    found = packed_tensors("x", quantized)
    assert found.keys() == {f"x.{key}" for key in expected}
    for key, tensor in expected.items():
        assert found[f"x.{key}"].dtype == tensor.dtype
        assert torch.equal(found[f"x.{key}"].view(torch.uint8), tensor.view(torch.uint8)), key


def test_the_static_scale_of_an_nvfp4_input_is_for_its_peak() -> None:
    scale_1 = _linear(NV, NV).input_global_scale
    assert scale_1 is not None
    assert torch.equal(scale_1, global_scale(torch.tensor(3.0)))
    assert float(scale_1) == pytest.approx(448 * 6 / 3.0)
    assert _linear(MX, MX).input_global_scale is None
    unmeasured = QuantizedLinear(
        name="block.linear",
        weights=WeightQuantization(format=NV),
        activations=ActivationQuantization(format=NV),
        online=OnlineInput(),
    )
    with pytest.raises(ValueError, match=r"block\.linear has no peak"):
        _ = unmeasured.input_global_scale


def test_activations_are_rounded_per_token_in_their_own_format() -> None:
    arguments = _linear(INT4, INT8).scheme().input_activations
    assert arguments is not None
    assert (arguments.num_bits, arguments.type, arguments.strategy, arguments.dynamic) == (8, "int", "token", True)
    arguments = _linear(FP8, FP8).scheme().input_activations
    assert arguments is not None
    assert (arguments.num_bits, arguments.type) == (8, "float")
    assert _linear(INT4, NONE).scheme().input_activations is None


@pytest.mark.parametrize("number_format", [each for each in NumberFormat if each.quantizes])
def test_every_row_has_a_layout_that_compressed_tensors_knows(number_format: NumberFormat) -> None:
    for activations in (number_format, NONE):
        linear = _linear(number_format, activations)
        assert BaseCompressor.get_value_from_registry(linear.format.value)
        scheme = linear.scheme()
        assert scheme.weights is not None
        assert scheme.weights.num_bits == number_format.bits
        assert (scheme.input_activations is None) == (activations is NONE)


def test_codes_that_nothing_packs_are_refused() -> None:
    quantized = quantize_weight(torch.randn(4, 32), WeightQuantization(format=FP8))
    with pytest.raises(ValueError, match=r"block\.linear has floating-point codes of 6 bits"):
        packed_tensors("block.linear", replace(quantized, bits=6))
