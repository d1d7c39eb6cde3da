"""Write the configuration of an exported checkpoint, which compressed-tensors, vLLM and our own loader read.

``quantization_config`` is complete and true for any reader of compressed-tensors. Rotations whose order is a power of
two have its ``hadamard`` type, for which runtimes have kernels. Other orders (1536 = 12 · 128) are stored once, dense
and ±1, as its ``random-hadamard`` type. The ``quantry`` section has the same for our loader, without a matrix.

compressed-tensors can not express other online transforms. A checkpoint that has one gets a refusal marker: its schemes
name a number type that compressed-tensors refuses. So other readers raise an error instead of giving wrong logits
(docs/decisions/0008).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import compressed_tensors
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
from compressed_tensors.transform import TransformArgs, TransformConfig, TransformScheme

from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.checkpoint.quantry_section import Reach, online_section, reach, unusable

REFUSAL_MARKER: Final = " behind online transforms that only quant_engine.checkpoint.load applies"
"""The marker that makes other loaders refuse a checkpoint. It is appended to the number type of every weight."""

_STORED = re.compile(r"\.hadamard(\d+)_input\.weight$")
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


def checkpoint_config(
    base: dict[str, Any], linears: Sequence[QuantizedLinear], dense: Sequence[str], dtype: str
) -> dict[str, Any]:
    """Return the content of ``config.json`` of the export.

    Args:
        base: the sanitized configuration of the dense model.
        linears: every quantized linear.
        dense: the names of every other linear; they are listed in ``ignore``.
        dtype: the name of the type that the dense tensors are stored in.
    """
    # The old name of dtype; the two could contradict each other.
    config = {key: value for key, value in base.items() if key != "torch_dtype"}
    return config | {
        "dtype": dtype,
        "quantization_config": _quantization_config(linears, dense),
        "quantry": online_section(linears),
    }


def transform_name(order: int) -> str:
    """Return the name of the transform group of one order."""
    return f"hadamard{order}"


def stored_name(linear: str, order: int) -> str:
    """Return the tensor name under which compressed-tensors looks for the matrix of a linear's online transform."""
    return f"{linear}.{transform_name(order)}_input.weight"


def hadamard_order_of(name: str) -> int | None:
    """Return the order of the matrix that is stored under ``name``; None for other tensors."""
    found = _STORED.search(name)
    return int(found[1]) if found else None


def is_power_of_two(order: int) -> bool:
    """Return whether compressed-tensors itself can construct a Hadamard matrix of this order."""
    # A power of two has a single bit, which the subtraction clears.
    return order & (order - 1) == 0


def transform_config(linears: Sequence[QuantizedLinear]) -> TransformConfig:
    """Return one group for each order: online on the input, and its inverse on the weight, which is already fused."""
    orders = hadamard_orders(linears)
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


def hadamard_orders(linears: Sequence[QuantizedLinear]) -> list[int]:
    """Return the orders that other readers have to know; none where only our loader can read the checkpoint."""
    if reach(linears) is Reach.LOADER:
        return []
    return sorted({linear.online.order for linear in linears if linear.online.order is not None})


def stored_orders(linears: Sequence[QuantizedLinear]) -> dict[int, str]:
    """Return the orders whose matrix is in the checkpoint, each with the first linear that needs it.

    These are the orders that compressed-tensors can not construct, and small orders in front of NVFP4. vLLM's kernel
    for Blackwell (``QutlassNvFP4LinearMethod``) reads the latter from the checkpoint although it could construct them.
    """
    stored: dict[int, str] = {}
    for order in hadamard_orders(linears):
        rotated = [linear for linear in linears if linear.online.order == order]
        needing = [linear for linear in rotated if not is_power_of_two(order) or _runs_on_qutlass(linear, order)]
        if needing:
            stored[order] = needing[0].name
    return stored


def _runs_on_qutlass(linear: QuantizedLinear, order: int) -> bool:
    weights = linear.weights.format
    return weights is linear.activations.format and order in weights.spec.stored_orders


def compact_patterns(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return patterns that match all of ``names`` and none of ``others``.

    They are one expression for each role in every block, or the names themselves where only some blocks are meant.
    """
    excluded = set(others)
    patterns: list[str] = []
    for role in sorted({_BLOCK.sub("{}", name) for name in names}):
        # The index of the block becomes a number of any size, so one expression covers all blocks.
        pattern = re.escape(role).replace(r"\{\}", r"\d+")
        if any(re.fullmatch(pattern, other) for other in excluded):
            patterns += [name for name in names if _BLOCK.sub("{}", name) == role]
        elif "{}" in role:
            patterns.append(f"re:^{pattern}$")
        else:
            patterns.append(role)
    return patterns


def without_refusal_marker(quantization_config: Any) -> dict[str, Any]:
    """Return ``quantization_config`` without the marker that makes other loaders refuse it, if it has one.

    Raises:
        InvalidModel: it is malformed.
    """
    try:
        return _with_number_types(quantization_config, lambda name: name.removesuffix(REFUSAL_MARKER))
    except (KeyError, TypeError, AttributeError) as error:
        raise unusable("the quantization_config of config.json is malformed") from error


def _with_refusal_marker(quantization_config: dict[str, Any]) -> dict[str, Any]:
    return _with_number_types(quantization_config, lambda name: name + REFUSAL_MARKER)


def _with_number_types(quantization_config: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    groups = {
        name: group | {"weights": group["weights"] | {"type": change(group["weights"]["type"])}}
        for name, group in quantization_config["config_groups"].items()
    }
    return quantization_config | {"config_groups": groups}


def _quantization_config(linears: Sequence[QuantizedLinear], dense: Sequence[str]) -> dict[str, Any]:
    # Linears with equal schemes form one group; their JSON is compared, without the targets.
    members: dict[str, list[QuantizedLinear]] = {}
    for linear in linears:
        members.setdefault(linear.scheme([]).model_dump_json(), []).append(linear)
    groups = {}
    for index, group in enumerate(members.values()):
        names = {linear.name for linear in group}
        others = [linear.name for linear in linears if linear.name not in names] + list(dense)
        groups[f"group_{index}"] = group[0].scheme(compact_patterns([linear.name for linear in group], others))
    # The section has one overall layout; with mixed_precision readers use the layout of each group.
    formats = {linear.format for linear in linears}
    config = QuantizationConfig(
        config_groups=groups,
        format=(formats.pop() if len(formats) == 1 else CompressionFormat.mixed_precision).value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=compact_patterns(dense, [linear.name for linear in linears]),
    )
    content = {
        **config.model_dump(mode="json"),
        "version": compressed_tensors.__version__,
        "sparsity_config": {},
        "transform_config": transform_config(linears).model_dump(mode="json"),
    }
    return _with_refusal_marker(content) if reach(linears) is Reach.LOADER else content
