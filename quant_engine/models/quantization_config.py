"""Parse a checkpoint's ``quantization_config`` as compressed-tensors reads it."""

from collections.abc import Mapping
from typing import Any

from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationConfig

from quant_engine.errors import InvalidModel
from quant_engine.model_files.compressed_section import check_measurable, check_section
from quant_engine.model_files.quantization_formats import COMPRESSED_TENSORS


def parse_quantization(section: Mapping[str, Any], *, weights_only: bool = False) -> QuantizationConfig:
    """Return the configuration as compressed-tensors reads it.

    Args:
        weights_only: only the dequantized weights are read, so that the key-value cache and the rounding of inputs do
            not matter.

    Raises:
        UnsupportedQuantization: another library's method, a layout of sparse weights, weights that are not compressed,
            or a quantized key-value cache.
        InvalidModel: it is malformed.
    """
    check_section(section)
    if not weights_only:
        check_measurable(section)
    content = dict(section) | {"quant_method": COMPRESSED_TENSORS, "kv_cache_scheme": None}
    try:
        # A section without a format is read as mixed: the format of each group is then found from its scheme.
        config = QuantizationConfig.model_validate({"format": CompressionFormat.mixed_precision.value} | content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(
            detail=f"The quantization_config of config.json is malformed ({type(error).__name__}).",
            hint="Check that config.json is as the checkpoint's writer wrote it.",
        ) from error
    return config
