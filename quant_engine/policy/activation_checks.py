"""Check how inputs are rounded, and whether a runtime multiplies them with the weights."""

from typing import Final

from quant_engine.policy.formats import ActivationQuantization, NumberFormat, WeightQuantization
from quant_engine.policy.policy_error import PolicyError, given

_FP8_GROUP: Final = 128
"""The groups of int4 weights that vLLM multiplies with fp8 inputs (``CompressedTensorsW4A8Fp8``)."""


_SMALLEST_INPUT_GROUPS: Final = {NumberFormat.INT4: 64, NumberFormat.INT8: 32}
"""The formats of inputs that Humming multiplies in groups, with the smallest groups that it takes."""


def check_activations(activations: ActivationQuantization, weights: WeightQuantization, pointer: str) -> None:
    """Refuse settings of inputs that contradict each other or the weights, or that no kernel takes.

    Raises:
        PolicyError: its pointer is below ``pointer``.
    """
    if activations.clip == "search" and activations.clip_ratio != 1.0:
        raise PolicyError(
            f"{pointer}/clip_ratio",
            "clip_given_and_searched",
            f"clip_ratio is {activations.clip_ratio}, but clip 'search' looks for it. Leave one of them out.",
        )
    if activations.format.group_size is not None and (activations.clip != "none" or activations.clip_ratio != 1.0):
        raise PolicyError(
            f"{pointer}/clip",
            "groups_are_not_clipped",
            f"{activations.format.value} scales every group of {activations.format.group_size} channels by itself and "
            "clips none. Set clip to 'none' and clip_ratio to 1.",
        )
    if activations.format.quantizes and weights.format.quantizes and not weights.symmetric:
        raise PolicyError(
            f"{pointer}/format",
            "zero_points_need_float_inputs",
            f"weights have zero points and activations are {activations.format.value}. Kernels multiply such weights "
            "with floating-point inputs alone. Set activations.format to 'none', or weights.symmetric to true.",
        )
    _check_input_groups(activations, weights, pointer)
    _check_input_symmetry(activations, weights, pointer)
    quantizes = activations.format.quantizes and weights.format.quantizes
    if quantizes and weights.format.is_integer and activations.format is NumberFormat.FP8:
        _check_fp8_inputs(weights, pointer)
    elif quantizes and _number_kind(activations.format) != _number_kind(weights.format):
        raise PolicyError(
            f"{pointer}/format",
            "mixed_number_kinds",
            f"weights are {weights.format.value} and activations {activations.format.value}: no runtime multiplies "
            "the one by the other. Use integers for both, the same floating-point format for both, int4 weights in "
            f"groups of {_FP8_GROUP} with fp8 activations, or activations in 'none'.",
        )


def _check_fp8_inputs(weights: WeightQuantization, pointer: str) -> None:
    if weights.format is not NumberFormat.INT4 or weights.group_size != _FP8_GROUP:
        raise PolicyError(
            f"{pointer}/format",
            "mixed_number_kinds",
            f"activations are fp8 and weights {weights.format.value}, {given(weights.group_size)}. The only integer "
            f"weights that a runtime multiplies with fp8 are int4 in groups of {_FP8_GROUP}. Set weights.granularity "
            f"to 'group' and weights.group_size to {_FP8_GROUP}, or use integers or fp8 for both.",
        )


def _check_input_groups(activations: ActivationQuantization, weights: WeightQuantization, pointer: str) -> None:
    size = activations.group_size
    if (activations.granularity == "group") != (size is not None):
        raise PolicyError(
            f"{pointer}/group_size",
            "group_size_mismatch",
            f"activations.granularity is {activations.granularity!r}, {given(size)}. "
            "Give a group_size with granularity 'group', and only then.",
        )
    if size is None:
        return
    smallest = _SMALLEST_INPUT_GROUPS.get(activations.format)
    if smallest is None or size < smallest:
        raise PolicyError(
            f"{pointer}/group_size",
            "no_kernel_for_groups",
            f"activations are {activations.format.value} in groups of {size}. Kernels take int4 in groups of 64 or "
            "more, and int8 in groups of 32 or more. Use these, or granularity 'token'.",
        )
    if weights.format.quantizes and (not weights.format.is_integer or weights.group_size != size):
        raise PolicyError(
            f"{pointer}/group_size",
            "groups_differ",
            f"activations have groups of {size}, and weights are {weights.format.value}, {given(weights.group_size)}. "
            "Kernels multiply group by group: give integer weights the same groups, or activations granularity "
            "'token'.",
        )
    if activations.clip != "none" or activations.clip_ratio != 1.0:
        raise PolicyError(
            f"{pointer}/clip",
            "groups_are_not_clipped",
            "Every group of an input is scaled by itself, and none is clipped. Set clip to 'none' and clip_ratio to 1.",
        )


def _check_input_symmetry(activations: ActivationQuantization, weights: WeightQuantization, pointer: str) -> None:
    if activations.symmetric:
        return
    int8 = activations.format is NumberFormat.INT8 and weights.format in (NumberFormat.INT8, NumberFormat.NONE)
    if not int8 or activations.granularity == "group" or weights.granularity == "group":
        raise PolicyError(
            f"{pointer}/symmetric",
            "no_kernel_for_zero_points",
            f"activations are {activations.format.value} with a zero point, and weights {weights.format.value}. "
            "Kernels take a zero point of int8 inputs with int8 weights alone, without groups. "
            "Set symmetric to true, or use int8 for both.",
        )
    if activations.clip != "none" or activations.clip_ratio != 1.0:
        raise PolicyError(
            f"{pointer}/clip",
            "zero_points_are_not_clipped",
            "The smallest and the largest value of a token are the ends of an asymmetric grid, so nothing is clipped. "
            "Set clip to 'none' and clip_ratio to 1.",
        )


def _number_kind(number_format: NumberFormat) -> str:
    # Integers of different widths may be combined; a floating-point format only with itself.
    return number_format.value if number_format.is_float else "integer"
