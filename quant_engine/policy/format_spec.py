"""The facts about a number format, without torch: one :class:`FormatSpec` for each format.

The rows are in :mod:`quant_engine.policy.formats`. The grid of a format needs torch; it is added to the row in
:mod:`quant_engine.grids.formats`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

_WIDTHS: Final = range(2, 9)
"""Allowed bits of a code. A block on disk holds a code in one byte, and one bit has no symmetric grid."""


class Scheme(StrEnum):
    """A combination of weights and activations that engines treat alike; the value is its name in a card."""

    WEIGHT_ONLY = "packed 4- or 8-bit weights"
    ODD_WEIGHT_ONLY = "packed weights of 2, 3, 5, 6 or 7 bits"
    INT_A4 = "packed weights, 4-bit activations"
    INT_A8 = "packed weights, 8-bit activations"
    INT_OTHER = "packed weights, activations of another width"
    INT_TENSOR = "packed weights with one scale a tensor"
    INT_FP8 = "packed weights, fp8 activations"
    W8A8 = "int8 weights and activations"
    FP8 = "fp8 weights and activations"
    FP8_TENSOR = "fp8 weights with one scale a tensor, fp8 activations"
    FP8_WEIGHT_ONLY = "fp8 weights"
    NVFP4 = "NVFP4 weights and activations"
    NVFP4_WEIGHT_ONLY = "NVFP4 weights"
    MXFP4 = "MXFP4 weights and activations"
    MXFP4_WEIGHT_ONLY = "MXFP4 weights"


@dataclass(frozen=True, kw_only=True)
class EngineSchemes:
    """The schemes that serving engines choose for the linears of a number format.

    Attributes:
        weight_only: weights have this format, activations are not quantized.
        activations: activations have this format, and weights the same or, with integers, any width.
        weight_only_per_tensor, activations_per_tensor: the same, where the weight has one scale for the whole tensor.
    """

    weight_only: Scheme
    activations: Scheme
    weight_only_per_tensor: Scheme
    activations_per_tensor: Scheme


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Another layout, for linears whose weights and activations have the same format and whose weights have no groups.

    Attributes:
        layout: its name in compressed-tensors.
        scheme: the scheme that serving engines choose for such linears.
    """

    layout: str
    scheme: Scheme


@dataclass(frozen=True, kw_only=True)
class FormatSpec:
    """One number format. No field has a default, so every row has to state every fact.

    Attributes:
        bits: width of a code; None for a format that leaves a tensor in floating point.
        is_float: whether codes are floating-point numbers; they are integers otherwise.
        group_size: how many neighboring channels share a scale, where the format itself fixes it.
        strategy: compressed-tensors' name of the values that share a scale, for a format that fixes its groups; None
            for the granularity that the policy chooses.
        static_peak: whether the scales of groups are relative to one fp32 scale of the whole tensor. That scale of an
            input is static: it is computed from the peak that calibration finds.
        plain_weights: whether groups and a clip are refused for weights.
        export_dtype: the only type that readers unpack weights to; None where they use the model's type.
        layout: compressed-tensors' name of the layout that weights are stored in.
        pairing: another layout for weights whose activations have the same format; None where there is none.
        schemes: the schemes that serving engines choose; None where nobody has checked, which cards then state.
        stored_orders: orders of a Hadamard that vLLM reads from the checkpoint although it could construct them, where
            weights and activations have this format.

    Raises:
        ValueError: the fields contradict each other.
    """

    bits: int | None
    is_float: bool
    group_size: int | None
    strategy: Literal["group", "tensor_group"] | None
    static_peak: bool
    plain_weights: bool
    export_dtype: Literal["bfloat16"] | None
    layout: str | None
    pairing: Pairing | None
    schemes: EngineSchemes | None
    stored_orders: tuple[int, ...]

    def __post_init__(self) -> None:
        if (self.bits is None) != (self.layout is None):
            raise ValueError(f"a format has codes and a layout, or neither: bits is {self.bits}, layout {self.layout}")
        if self.bits is not None and self.bits not in _WIDTHS:
            raise ValueError(f"bits is {self.bits}; a code has {_WIDTHS.start} to {_WIDTHS.stop - 1} bits")
        if (self.group_size is None) != (self.strategy is None):
            raise ValueError(
                f"groups of a format's own need a strategy: group_size is {self.group_size}, strategy {self.strategy}"
            )
        if self.group_size is not None and not self.is_float:
            raise ValueError(f"group_size is {self.group_size}; integers have the groups that a policy gives them")
        if self.static_peak != (self.strategy == "tensor_group"):
            raise ValueError(
                f"static_peak is {self.static_peak} with strategy {self.strategy}; tensor_group has a peak"
            )

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers."""
        return self.bits is not None and not self.is_float
