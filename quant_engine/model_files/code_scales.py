"""Pair the codes of quantized weights with their scales: w = code · scale, as FP8 and plain int8 checkpoints store it.

Only names, types and shapes are looked at. A scale belongs to the whole weight, to one of its rows, or to a block.

Shapes: O output and I input channels, R × C the grid of scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from quant_engine.model_files.headers import FLOATING, StoredTensor
from quant_engine.model_files.quantization_formats import unusable

SCALE_PARTS: Final = ("weight_scale", "weight_scale_inv")
"""The last part of a scale's name. Both are factors of the codes, also the one that is called inverse."""

INPUT_PARTS: Final = (
    *("input_scale", "input_scale_ub", "activation_scale", "output_scale"),
    *("input_zero_point", "output_zero_point"),
)
"""Scales of a linear's inputs and outputs. The weights do not depend on them."""
CACHE_PARTS: Final = ("k_scale", "v_scale", "q_scale", "prob_scale", "kv_scale")
"""Scales of the key-value cache and of the attention. The weights do not depend on them."""

_CODES: Final = ("F8_E4M3", "F8_E5M2", "I8")
_SCALES: Final = FLOATING | {"F8_E8M0"}
_FP8_BLOCK: Final = (128, 128)


class Granularity(StrEnum):
    """What shares a scale."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"


@dataclass(frozen=True)
class ScaledWeight:
    """One weight that is stored as codes.

    Attributes:
        scale: the name of the tensor with its scales.
        dtype: of the codes, as safetensors names it.
        shape: [O, I].
        block: the rows and columns that share a scale; blocks at the edges may be smaller.
    """

    name: str
    scale: str
    dtype: str
    shape: tuple[int, int]
    granularity: Granularity
    block: tuple[int, int]


def coded(tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """Return the names of the weights and biases that are not stored in a floating-point type."""
    return tuple(name for name, tensor in tensors.items() if _is_coded(name, tensor))


def stray_scales(tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """Return the scales without codes: their weight is missing or already floating, so nobody knows what they mean."""
    scales = (name for name in tensors if name.rpartition(".")[2] in SCALE_PARTS)
    weights = {name: tensors.get(f"{name.rpartition('.')[0]}.weight") for name in scales}
    return tuple(name for name, weight in weights.items() if weight is None or weight.dtype in FLOATING)


def scaled_weights(
    tensors: Mapping[str, StoredTensor], block: tuple[int, int] | None = None
) -> dict[str, ScaledWeight]:
    """Return every weight that is stored as codes, with its scales.

    Args:
        block: the rows and columns of a block, where the configuration names them.

    Raises:
        UnsupportedQuantization: codes have no scales, or scales no codes, or the two do not fit; the error names them.
    """
    names = coded(tensors)
    without = [name for name in names if not _scales_of(name, tensors)]
    if without:
        raise unusable(
            f"{without[0]} holds {tensors[without[0]].dtype} codes without their scales{_more(without)}, "
            "and codes are not weights"
        )
    stray = stray_scales(tensors)
    if stray:
        raise unusable(f"{stray[0]} has no codes beside it{_more(stray)}")
    return {name: _scaled(name, tensors, block) for name in names}


def idle_tensors(tensors: Mapping[str, StoredTensor], weights: Mapping[str, ScaledWeight]) -> frozenset[str]:
    """Return the stored scales on which none of ``weights`` depends: of the cache, and of inputs beside a weight."""
    parts = {name: name.rpartition(".") for name in tensors}
    return frozenset(
        name
        for name, (module, _, part) in parts.items()
        if part in CACHE_PARTS or (part in INPUT_PARTS and f"{module}.weight" in weights)
    )


def _is_coded(name: str, tensor: StoredTensor) -> bool:
    # A "bias" of booleans or bytes is the mask of an old attention class.
    part = name.rpartition(".")[2]
    mask = part == "bias" and tensor.dtype in ("BOOL", "U8")
    return part in ("weight", "bias") and tensor.dtype not in FLOATING and not mask


def _scales_of(weight: str, tensors: Mapping[str, StoredTensor]) -> list[str]:
    module, _, part = weight.rpartition(".")
    return [f"{module}.{each}" for each in SCALE_PARTS if part == "weight" and f"{module}.{each}" in tensors]


def _scaled(name: str, tensors: Mapping[str, StoredTensor], block: tuple[int, int] | None) -> ScaledWeight:
    scales, codes = _scales_of(name, tensors), tensors[name]
    if len(scales) > 1:
        raise unusable(f"{name} has both {' and '.join(SCALE_PARTS)} beside it")
    if codes.dtype not in _CODES or len(codes.shape) != 2:
        raise unusable(
            f"{name} holds {codes.dtype} codes of shape {list(codes.shape)}; read are {', '.join(_CODES)} of matrices"
        )
    scale = tensors[scales[0]]
    if scale.dtype not in _SCALES:
        raise unusable(f"{scales[0]} is of the type {scale.dtype}, which is no type of scales known here")
    found = _granularity((codes.shape[0], codes.shape[1]), scale.shape, _possible_block(codes.dtype, block))
    if found is None:
        raise unusable(
            f"{scales[0]} has the shape {list(scale.shape)}, which is neither one scale for {name} "
            f"{list(codes.shape)}, nor one for each row, nor one for each block that the configuration names"
        )
    granularity, size = found
    return ScaledWeight(name, scales[0], codes.dtype, (codes.shape[0], codes.shape[1]), granularity, size)


def _possible_block(dtype: str, named: tuple[int, int] | None) -> tuple[int, int] | None:
    # Writers of FP8 that name no size use this one. Nothing of the kind is known of int8.
    return named if named is not None or dtype == "I8" else _FP8_BLOCK


def _granularity(
    weight: tuple[int, int], scale: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[Granularity, tuple[int, int]] | None:
    rows, columns = weight
    if scale in ((), (1,), (1, 1)):
        return Granularity.TENSOR, weight
    if scale in ((rows,), (rows, 1)):
        return Granularity.CHANNEL, (1, columns)
    if block is not None:
        grid = (-(-rows // block[0]), -(-columns // block[1]))  # rounded up
        # ModelOpt stores the grid of its blocks as [R, 1, C, 1].
        if scale in (grid, (grid[0], 1, grid[1], 1)):
            return Granularity.BLOCK, block
    return None


def _more(names: list[str] | tuple[str, ...]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
