"""The configuration of an exported checkpoint: what compressed-tensors, vLLM and our own loader read.

``quantization_config`` is complete and true for any consumer of compressed-tensors. Rotations of a power of two are its
``hadamard`` type, which runtimes have kernels for; other orders (1536 = 12 · 128) are stored once, dense and ±1, as its
``random-hadamard`` type. The ``quantry`` section tells our loader the same without a matrix.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import compressed_tensors
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
from compressed_tensors.transform import TransformArgs, TransformConfig, TransformScheme

from quant_engine.checkpoint.packing import QuantizedLinear, quantization_scheme

FORMAT_VERSION: Final = 1
"""Of the ``quantry`` section."""

_STORED = re.compile(r"\.hadamard(\d+)_input\.weight$")
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


def checkpoint_config(
    base: dict[str, Any], linears: Sequence[QuantizedLinear], dense: Sequence[str], dtype: str
) -> dict[str, Any]:
    """``config.json`` of the export.

    Args:
        base: the sanitized configuration of the dense model.
        linears: every quantized linear.
        dense: the names of every other linear; they are listed in ``ignore``.
        dtype: the name of the type that the dense tensors are stored in.
    """
    online = {
        linear.name: {"hadamard_order": linear.online.order, "clip_ratio": linear.online.clip_ratio}
        for linear in linears
        if not linear.online.is_identity
    }
    config = {key: value for key, value in base.items() if key != "torch_dtype"}
    return config | {
        "dtype": dtype,
        "quantization_config": _quantization_config(linears, dense),
        "quantry": {"format_version": FORMAT_VERSION, "profile": "rotated", "online": online},
    }


def transform_name(order: int) -> str:
    """The name of the transform group of one order."""
    return f"hadamard{order}"


def stored_name(linear: str, order: int) -> str:
    """Where compressed-tensors looks for the matrix of a linear's online transform."""
    return f"{linear}.{transform_name(order)}_input.weight"


def hadamard_order_of(name: str) -> int | None:
    """The order of the matrix that is stored under ``name``; None for other tensors."""
    found = _STORED.search(name)
    return int(found[1]) if found else None


def is_power_of_two(order: int) -> bool:
    """Whether compressed-tensors can construct a Hadamard matrix of this order by itself."""
    return order & (order - 1) == 0


def transform_config(linears: Sequence[QuantizedLinear]) -> TransformConfig:
    """One group for each order: online on the input, and, already fused, its inverse on the weight."""
    orders = sorted({linear.online.order for linear in linears if linear.online.order is not None})
    dense = [linear.name for linear in linears]
    groups = {}
    for order in orders:
        names = [linear.name for linear in linears if linear.online.order == order]
        targets = compact_patterns(names, [name for name in dense if name not in set(names)])
        groups[transform_name(order)] = TransformScheme(
            type="hadamard" if is_power_of_two(order) else "random-hadamard",
            head_dim=order,
            apply=[
                TransformArgs(targets=targets, location="input"),
                TransformArgs(targets=targets, location="weight_input", inverse=True),
            ],
        )
    return TransformConfig(config_groups=groups)


def compact_patterns(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Patterns that match all of ``names`` and none of ``others``: one expression for each role in every block,
    or the names themselves where only some blocks are meant."""
    excluded = set(others)
    patterns: list[str] = []
    for role in sorted({_BLOCK.sub("{}", name) for name in names}):
        pattern = re.escape(role).replace(r"\{\}", r"\d+")
        if any(re.fullmatch(pattern, other) for other in excluded):
            patterns += [name for name in names if _BLOCK.sub("{}", name) == role]
        elif "{}" in role:
            patterns.append(f"re:^{pattern}$")
        else:
            patterns.append(role)
    return patterns


def _quantization_config(linears: Sequence[QuantizedLinear], dense: Sequence[str]) -> dict[str, Any]:
    schemes = list(dict.fromkeys((linear.weights, linear.activations.format) for linear in linears))
    groups = {}
    for index, scheme in enumerate(schemes):
        members = [linear for linear in linears if (linear.weights, linear.activations.format) == scheme]
        names = [linear.name for linear in members]
        others = [linear.name for linear in linears if linear.name not in set(names)] + list(dense)
        targets = compact_patterns(names, others)
        groups[f"group_{index}"] = quantization_scheme(members[0].weights, members[0].activations, targets)
    config = QuantizationConfig(
        config_groups=groups,
        format="pack-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=compact_patterns(dense, [linear.name for linear in linears]),
    )
    return {
        **config.model_dump(mode="json"),
        "version": compressed_tensors.__version__,
        "sparsity_config": {},
        "transform_config": transform_config(linears).model_dump(mode="json"),
    }
