"""Find out from configuration and headers alone whether a model is quantized already, and how its weights can be read.

A sign is a section of config.json at any depth, a file beside it, a tensor that only quantized checkpoints have, or a
weight that is not of a floating-point type. One sign is enough: codes must never be taken for weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from quant_engine.errors import InvalidModel
from quant_engine.model_files.code_scales import (
    Granularity,
    ScaledWeight,
    coded,
    idle_tensors,
    scaled_weights,
    stray_scales,
)
from quant_engine.model_files.compressed_section import (
    check_dense,
    check_measurable,
    check_section,
    compressed_parts,
)
from quant_engine.model_files.description import ModelDescription
from quant_engine.model_files.headers import StoredTensor
from quant_engine.model_files.parsing import REPAIR
from quant_engine.model_files.quantization_formats import (
    CODES_OF,
    COMPRESSED_TENSORS,
    MODELOPT,
    READABLE_ALGORITHMS,
    SCALED_METHODS,
    SECTIONS,
    SIGN_FILES,
    TENSOR_SIGNS,
    format_name,
    method_of,
    unsupported,
    unusable,
)

_MAX_BLOCK: Final = 2**16


class QuantizationKind(StrEnum):
    """How the weights of a model are stored."""

    NONE = "none"
    """As they are, in a floating-point type."""
    COMPRESSED_TENSORS = "compressed-tensors"
    """As compressed-tensors stores them: its own section says how."""
    SCALED = "scaled"
    """As codes of eight bits with scales beside them (FP8, plain int8)."""


@dataclass(frozen=True, kw_only=True)
class SourceQuantization:
    """How a model is quantized already.

    Attributes:
        name: of the format, for people; empty for a dense model.
        section: the ``quantization_config`` of compressed-tensors.
        weights: the weights that are codes with scales, by name.
        idle: stored scales of activations and of the key-value cache, on which no weight depends.
        parts: all stored tensors that belong to quantized weights, and the idle ones.
    """

    kind: QuantizationKind
    name: str = ""
    section: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, ScaledWeight] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    def renamed(self, names: Mapping[str, str]) -> "SourceQuantization":
        """Return the same with other names: ``names`` has the stored name by the new one."""
        new = {stored: name for name, stored in names.items()}
        weights = [replace(each, name=new[each.name], scale=new[each.scale]) for each in self.weights.values()]
        return replace(
            self,
            weights={each.name: each for each in weights},
            idle=frozenset(new[name] for name in self.idle),
            parts=frozenset(new[name] for name in self.parts),
        )


@dataclass(frozen=True)
class _Section:
    """A part of the model's files that describes a quantization, and where it was found."""

    place: str
    method: str
    content: Mapping[str, Any]


def source_quantization(description: ModelDescription) -> SourceQuantization:
    """Return how a model is quantized, from its configuration and headers.

    Raises:
        UnsupportedQuantization: it is quantized in a format that can not be read, or codes lack their scales.
        InvalidModel: a section that describes it is malformed.
        ModelNotFound, UnsafeCheckpoint: see :class:`ModelFiles`.
    """
    sections = _sections(description)
    for section in sections:
        _require_readable(section)
    compressed = [section for section in sections if section.method == COMPRESSED_TENSORS]
    if compressed:
        content = compressed[0].content
        check_section(content)
        _require_codes(description.tensors)
        shown = content.get("format") or "mixed-precision"
        return SourceQuantization(
            kind=QuantizationKind.COMPRESSED_TENSORS,
            name=f"{COMPRESSED_TENSORS} ({shown})",
            section=content,
            parts=compressed_parts(description.config, content, description.tensors),
        )
    return _from_tensors(description, sections)


def check_source(description: ModelDescription, *, weights_only: bool) -> SourceQuantization:
    """Return how a model is quantized, after refusing what the use that is made of it would leave out.

    Args:
        weights_only: the model is quantized again, so its weights have to be all of it; else it is measured as it is.

    Raises:
        UnsupportedQuantization, InvalidModel: see :func:`source_quantization`; also a checkpoint that transforms its
            inputs at run time and is to be quantized again, or one with a quantized key-value cache that is measured.
    """
    found = source_quantization(description)
    if found.kind is QuantizationKind.COMPRESSED_TENSORS:
        if weights_only:
            check_dense(found.section, description.config.get("quantry"))
        else:
            check_measurable(found.section)
    return found


def has_quantization_section(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json describes a quantization anywhere."""
    return any(True for _ in _configured(config))


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without the sections that describe a quantization, at any depth."""
    return {
        key: without_quantization(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in SECTIONS
    }


def _from_tensors(description: ModelDescription, sections: list[_Section]) -> SourceQuantization:
    tensors = description.tensors
    name = _foreign_tensor(tensors, certain=bool(sections or coded(tensors)))
    if name is not None:
        raise unsupported(*name)
    weights = scaled_weights(tensors, _block_size(sections))
    for section in sections:
        _require_type(section, weights)
    idle = idle_tensors(tensors, weights)
    if weights:
        return SourceQuantization(
            kind=QuantizationKind.SCALED,
            name=_name(sections, weights),
            weights=weights,
            idle=idle,
            parts=idle | weights.keys() | {weight.scale for weight in weights.values()},
        )
    if sections:
        raise unusable(
            f"{sections[0].place} says that it is {format_name(sections[0].method)}, but no weight is stored as codes "
            "(if the weights are dense, remove that description)"
        )
    return SourceQuantization(kind=QuantizationKind.NONE)


def _sections(description: ModelDescription) -> list[_Section]:
    found = [_section("config.json", *each) for each in _configured(description.config)]
    for name, method in SIGN_FILES.items():
        content = description.optional(name)
        if content is not None:
            # ModelOpt has its description one level deeper.
            inner = content.get("quantization")
            merged = content | inner if isinstance(inner, dict) else content
            found.append(_Section(name, method_of(merged, method), merged))
    return found


def _configured(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the key and content of every section of a configuration that describes a quantization."""
    for key, value in config.items():
        if key in SECTIONS:
            # A null says that there is none.
            if value is not None:
                yield key, value
        elif isinstance(value, Mapping):
            yield from _configured(value)


def _section(file: str, key: str, content: Any) -> _Section:
    if not isinstance(content, Mapping):
        raise InvalidModel(detail=f"The {key} of {file} is not a JSON object.", hint=REPAIR)
    # MLX writes its section under a name of its own too, without a method.
    default = "mlx" if {"group_size", "bits"} <= content.keys() else ""
    return _Section(f"the {key} of {file}", method_of(content, default), content)


def _require_readable(section: _Section) -> None:
    method, name = section.method, format_name(section.method)
    if method == MODELOPT:
        algorithm = section.content.get("quant_algo")
        if algorithm not in READABLE_ALGORITHMS:
            raise unsupported(f"{name} {format_name(str(algorithm))}", section.place)
    elif method not in (COMPRESSED_TENSORS, *SCALED_METHODS):
        raise unsupported(name, section.place)


def _require_codes(tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse scales beside a dense weight, which would be multiplied by them as if it were codes."""
    weights = {name: f"{name.rpartition('.')[0]}.weight" for name in stray_scales(tensors)}
    dense = next((weight for weight in weights.values() if weight in tensors), None)
    if dense is not None:
        raise unusable(f"{dense} holds {tensors[dense].dtype} values beside scales, where codes have to be")


def _require_type(section: _Section, weights: Mapping[str, ScaledWeight]) -> None:
    """Refuse codes of another type than the section's method has."""
    wanted = CODES_OF[section.method]
    wrong = next((weight for weight in weights.values() if not weight.dtype.startswith(wanted)), None)
    if wrong is not None:
        raise unusable(
            f"{section.place} says that it is {format_name(section.method)}, but {wrong.name} holds {wrong.dtype} codes"
        )


def _foreign_tensor(tensors: Mapping[str, Any], *, certain: bool) -> tuple[str, str] | None:
    """Return the format that a tensor's name gives away, and that name.

    Args:
        certain: whether another sign exists, without which some names are too common to say anything.
    """
    for pattern, name in TENSOR_SIGNS:
        if name == "MLX" and not certain:
            continue
        sign = next((tensor for tensor in tensors if pattern.search(tensor)), None)
        if sign is not None:
            return name, f"it holds {sign[:120]}"
    return None


def _block_size(sections: list[_Section]) -> tuple[int, int] | None:
    for section in sections:
        block = section.content.get("weight_block_size")
        if block is None:
            continue
        if not (
            isinstance(block, list)
            and len(block) == 2
            and all(type(extent) is int and 0 < extent <= _MAX_BLOCK for extent in block)
        ):
            raise InvalidModel(detail=f"The weight_block_size in {section.place} is not two sizes.", hint=REPAIR)
        return block[0], block[1]
    return None


def _name(sections: list[_Section], weights: Mapping[str, ScaledWeight]) -> str:
    kinds = sorted({f"{weight.dtype} codes with {_shared(weight)}" for weight in weights.values()})
    writer = f"{format_name(sections[0].method)}: " if sections else ""
    return writer + " and ".join(kinds)


def _shared(weight: ScaledWeight) -> str:
    if weight.granularity is Granularity.BLOCK:
        return f"a scale for each block of {weight.block[0]} x {weight.block[1]}"
    return f"a scale for each {weight.granularity.value}"
