"""Parse a checkpoint's ``quantization_config``, and refuse the parts that are not supported."""

from collections.abc import Mapping
from typing import Any, Final

from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

from quant_engine.errors import InvalidModel, UnsupportedPolicy

METHOD: Final = "compressed-tensors"
FORMATS: Final = (
    CompressionFormat.pack_quantized,
    CompressionFormat.int_quantized,
    CompressionFormat.float_quantized,
    CompressionFormat.naive_quantized,
    CompressionFormat.nvfp4_pack_quantized,
    CompressionFormat.mxfp4_pack_quantized,
    CompressionFormat.mxfp8_quantized,
    CompressionFormat.mixed_precision,
)
"""The layouts of compressed-tensors whose weights can be read; the others are those of sparse weights."""


def parse_quantization(section: Mapping[str, Any]) -> QuantizationConfig:
    """Return the configuration as compressed-tensors reads it.

    Raises:
        UnsupportedPolicy: another library's method, a layout of sparse weights, weights that are not compressed, or a
            quantized key-value cache.
        InvalidModel: it is malformed.
    """
    method = section.get("quant_method")
    if method != METHOD:
        raise _unsupported(f"was quantized with the method {str(method)[:80]!r}", f"Only {METHOD!r} can be read.")
    if section.get("kv_cache_scheme") is not None:
        raise _unsupported("has a kv_cache_scheme", "A quantized key-value cache can not be measured yet.")
    sparsity = section.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise _unsupported("has a sparsity_config", "Sparse weights can not be read.")
    known = [each.value for each in FORMATS]
    groups = section.get("config_groups")
    # Checked before compressed-tensors reads them, so that the error names the format.
    formats = [section.get("format"), *_group_formats(groups)]
    for each in formats:
        if each is not None and each not in known:
            raise _unsupported(f"has weights in the format {str(each)[:80]!r}", f"Readable: {', '.join(known)}.")
    try:
        # A section without a format is read as mixed: the format of each group is then found from its scheme.
        config = QuantizationConfig.model_validate({"format": CompressionFormat.mixed_precision.value} | dict(section))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(
            detail=f"The quantization_config of config.json is malformed ({type(error).__name__}).",
            hint="Check that config.json is as the checkpoint's writer wrote it.",
        ) from error
    if config.quantization_status is not QuantizationStatus.COMPRESSED:
        raise _unsupported(
            f"has the quantization_status {config.quantization_status.value!r}",
            "Save it compressed: save_pretrained(save_compressed=True).",
        )
    return config


def _group_formats(groups: Any) -> list[Any]:
    members = groups.values() if isinstance(groups, Mapping) else ()
    return [group.get("format") for group in members if isinstance(group, Mapping)]


def _unsupported(what: str, hint: str) -> UnsupportedPolicy:
    return UnsupportedPolicy(detail=f"The checkpoint {what}.", hint=hint)
