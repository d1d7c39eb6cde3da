"""The stored tensors that belong to quantized weights, from configuration and headers alone."""

from typing import Final

from quant_engine.model_files import ModelDescription, QuantizationKind, SourceQuantization
from quant_engine.model_files.code_scales import CACHE_PARTS, SCALE_PARTS
from quant_engine.model_files.compressed_section import transform_tensors

_SIGNS: Final = frozenset((*SCALE_PARTS, "weight_packed", "weight_global_scale", "weight_shape"))


def quantized_parts(model: ModelDescription, source: SourceQuantization) -> frozenset[str]:
    """Return the codes, the scales, and what else is stored for quantized weights.

    Of compressed-tensors it is every tensor of a module that has a scale. Which of them a scheme has, the engine checks
    when it opens the model, because that takes the library and torch.
    """
    if source.kind is QuantizationKind.SCALED:
        scales = {weight.scale for weight in source.weights.values()}
        return frozenset({*source.weights, *scales, *source.idle})
    if source.kind is QuantizationKind.NONE:
        return frozenset()
    parts = {name: name.rpartition(".") for name in model.tensors}
    quantized = {module for module, _, part in parts.values() if part in _SIGNS}
    inside = {name for name, (module, _, part) in parts.items() if module in quantized and part != "bias"}
    cache = {name for name, (_, _, part) in parts.items() if part in CACHE_PARTS}
    return frozenset(inside | cache | transform_tensors(model.config, source.section, model.tensors))
