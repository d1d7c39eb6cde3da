"""Refuse the parts of a compressed-tensors ``quantization_config`` that are not supported, by their names."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from quant_engine.errors import UnsupportedQuantization
from quant_engine.model_files.code_scales import CACHE_PARTS
from quant_engine.model_files.quantization_formats import COMPRESSED_TENSORS, format_name, method_of, unsupported
from quant_engine.policy.patterns import EXPRESSION, PatternError, beginning_test

FORMATS: Final = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
"""The layouts of compressed-tensors whose weights can be read; the others are those of sparse weights."""

_COMPRESSED: Final = "compressed"
_SCALES: Final = ("weight_scale", "weight_global_scale")
_PARTS: Final = (
    *("weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    *("input_scale", "input_zero_point", "input_global_scale"),
    *("output_scale", "output_zero_point", "output_global_scale"),
)
"""The last parts of the names of the tensors that compressed-tensors stores for a linear, besides its ``weight``."""


def check_section(section: Mapping[str, Any]) -> None:
    """Refuse what can not be read.

    Raises:
        UnsupportedQuantization: another library's method, a layout of sparse weights, or weights that are not
            compressed.
    """
    method = method_of(section)
    if method != COMPRESSED_TENSORS:
        raise unsupported(format_name(method), "the quantization_config of config.json")
    sparsity = section.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise _unsupported("has a sparsity_config", "Sparse weights can not be read: save the model dense.")
    for each in (section.get("format"), *_group_formats(section.get("config_groups"))):
        if each is not None and each not in FORMATS:
            raise _unsupported(f"has weights in the format {str(each)[:80]!r}", f"Readable: {', '.join(FORMATS)}.")
    status = section.get("quantization_status", _COMPRESSED)
    if status != _COMPRESSED:
        raise _unsupported(
            f"has the quantization_status {str(status)[:80]!r}",
            "Save it compressed: save_pretrained(save_compressed=True). If its weights are codes already, as those of "
            "some older checkpoints are, set the quantization_status in config.json to 'compressed'.",
        )
    _check_patterns(section)


def check_measurable(section: Mapping[str, Any]) -> None:
    """Refuse what a measurement would leave out.

    Raises:
        UnsupportedQuantization: the key-value cache is quantized.
    """
    if section.get("kv_cache_scheme") is not None:
        raise _unsupported("has a kv_cache_scheme", "A quantized key-value cache can not be measured yet.")


def check_dense(section: Mapping[str, Any], quantry: Any) -> None:
    """Refuse a checkpoint whose weights alone are not its model, so that they can not be quantized again.

    Args:
        quantry: the section of a checkpoint that Quantry exported; None for others.

    Raises:
        UnsupportedQuantization: it computes a transform at run time, which is not in the weights.
    """
    if _online(section.get("transform_config")) or _ours_online(quantry):
        raise _unsupported(
            "transforms the inputs of its linears at run time, so its weights alone are not the model",
            "Give the dense original that it was made from, or a checkpoint without online transforms "
            "(policy.online 'none').",
        )


def compressed_parts(config: Mapping[str, Any], section: Mapping[str, Any], stored: Iterable[str]) -> frozenset[str]:
    """Return the stored tensors that look like parts of quantized linears, or are no weights by design.

    Only compressed-tensors knows which linears are quantized, so a part of a linear without a scheme is among them.
    Arguments: see :func:`transform_tensors`.
    """
    names = frozenset(stored)
    modules = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in _SCALES}
    parts = {name for name in names if name.rpartition(".")[2] in _PARTS}
    weights = {f"{module}.weight" for module in modules} & names
    cache = cache_tensors(section, names)
    return frozenset(parts | weights) | cache | transform_tensors(config, section, names)


def cache_tensors(section: Mapping[str, Any], stored: Iterable[str]) -> frozenset[str]:
    """Return the stored scales of a quantized key-value cache, where the section describes one."""
    if section.get("kv_cache_scheme") is None:
        return frozenset()
    return frozenset(name for name in stored if name.rpartition(".")[2] in CACHE_PARTS)


def transform_tensors(config: Mapping[str, Any], section: Mapping[str, Any], stored: Iterable[str]) -> frozenset[str]:
    """Return the stored tensors that belong to online transforms, of compressed-tensors or of Quantry.

    Args:
        config: the whole config.json, with Quantry's section where there is one.
    """
    groups = _mapping(_mapping(section.get("transform_config")).get("config_groups"))
    endings = tuple(f".{group}_{location}.weight" for group in groups for location in ("input", "output"))
    transforms = _mapping(_mapping(config.get("quantry")).get("transforms"))
    entries = [entry for listed in transforms.values() for entry in _list(listed)]
    ours = [tensor.get("name") for entry in entries for tensor in _members(_mapping(entry).get("tensors"))]
    return frozenset(name for name in stored if name in ours or name.endswith(endings))


def _check_patterns(section: Mapping[str, Any]) -> None:
    """Refuse regular expressions that can not be matched in linear time: compressed-tensors backtracks."""
    transforms = _members(_mapping(section.get("transform_config")).get("config_groups"))
    applied = [_mapping(each) for group in transforms for each in _list(group.get("apply"))]
    lists = [section.get("ignore"), *(group.get("targets") for group in _members(section.get("config_groups")))]
    lists += [each.get(key) for each in applied for key in ("targets", "ignore")]
    for pattern in (each for listed in lists for each in _list(listed)):
        if isinstance(pattern, str) and pattern.startswith(EXPRESSION):
            try:
                beginning_test(pattern.removeprefix(EXPRESSION))
            except PatternError as error:
                raise _unsupported("has a regular expression that can not be used", error.detail) from error


def _ours_online(quantry: Any) -> bool:
    entries = _members(_mapping(quantry).get("online"))
    # The first version names the order of a Hadamard. A clip alone belongs to the rounding of inputs.
    return any(entry.get(key) is not None for entry in entries for key in ("transform", "hadamard_order"))


def _online(transforms: Any) -> bool:
    """Return whether a ``transform_config`` has a transform that is not in the weights already."""
    groups = _members(_mapping(transforms).get("config_groups"))
    applied = [_mapping(each) for group in groups for each in _list(group.get("apply"))]
    return any(not str(each.get("location")).startswith("weight") for each in applied)


def _group_formats(groups: Any) -> list[Any]:
    return [group.get("format") for group in _members(groups)]


# A file may hold anything in any place. What is malformed is passed over here, and refused by compressed-tensors.


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _members(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in _mapping(value).values() if isinstance(each, Mapping)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _unsupported(what: str, hint: str) -> UnsupportedQuantization:
    return UnsupportedQuantization(detail=f"The checkpoint {what}.", hint=hint)
