"""The policy: what to quantize, how to transform it first, and how to look for the best transform.

Everything here is frozen and validated; importing it loads no torch, so the API can speak it.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from quant_engine.policy.fields import Count, Flag, Fraction, Frozen, LearningRate, Name, NonNegativeInt, Quantile


class NumberFormat(StrEnum):
    """Symmetric signed integer grids; ``none`` leaves the tensor in floating point."""

    INT2 = "int2"
    INT3 = "int3"
    INT4 = "int4"
    INT5 = "int5"
    INT6 = "int6"
    INT7 = "int7"
    INT8 = "int8"
    NONE = "none"

    @property
    def bits(self) -> int | None:
        """Width in bits, or None for ``none``."""
        return None if self is NumberFormat.NONE else int(self.value.removeprefix("int"))


class WeightQuantization(Frozen):
    """How a weight matrix [out, in] is rounded. ``group_size`` counts input channels that share a scale."""

    format: NumberFormat = NumberFormat.INT4
    granularity: Literal["channel", "group", "tensor"] = "channel"
    group_size: Annotated[int, Field(strict=True, ge=8, le=65536)] | None = None
    symmetric: Literal[True] = True
    clip: Literal["none"] = "none"
    rounding: Literal["rtn"] = "rtn"


class ActivationQuantization(Frozen):
    """How a linear's input [tokens, in] is rounded, dynamically. ``clip_ratio`` shrinks the absmax of the scale."""

    format: NumberFormat = NumberFormat.INT4
    granularity: Literal["token"] = "token"
    symmetric: Literal[True] = True
    clip_ratio: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0


class TransformKind(StrEnum):
    """The equivalent transforms A of Y = (X A)(W A⁻ᵀ)ᵀ that can be asked for."""

    NONE = "none"
    SMOOTH = "smooth"
    ROTATION = "rotation"
    SMOOTH_ROTATION = "smooth_rotation"

    @property
    def scales_channels(self) -> bool:
        """Whether the transform carries a diagonal s."""
        return self in (TransformKind.SMOOTH, TransformKind.SMOOTH_ROTATION)

    @property
    def rotates(self) -> bool:
        """Whether the transform carries a Hadamard rotation, applied online to the activations."""
        return self in (TransformKind.ROTATION, TransformKind.SMOOTH_ROTATION)


class Statistic(Frozen):
    """The channel statistic behind s = stat_X^α / stat_W^(1−α); ``q`` is for ``quantile`` (1: the maximum)."""

    kind: Literal["absmax", "quantile", "l2"] = "absmax"
    q: Quantile = 1.0


class Transform(Frozen):
    """One transform. ``block_size`` is the order of the Hadamard; null is the full width where one exists."""

    kind: TransformKind = TransformKind.SMOOTH_ROTATION
    alpha: Fraction = 0.5
    statistic: Statistic = Statistic()
    block_size: Annotated[int, Field(strict=True, ge=2, le=65536)] | None = None


class LayerChoice(Frozen):
    """How many layers the search is scored on: the ``critical`` worst by baseline error and ``normal`` others."""

    critical: Count = 3
    normal: NonNegativeInt = 2


class GridSearch(Frozen):
    """Every (α, q) pair, and every listed statistic without a parameter, tried as a scale policy.

    ``scope`` "shared" takes one policy for all layers, judged on the selected ones; "per_layer" one for each layer.
    """

    kind: Literal["grid"] = "grid"
    alpha: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=64)] = (0.5,)
    q: Annotated[tuple[Quantile, ...], Field(max_length=64)] = (1.0,)
    l2: Flag = False
    scope: Literal["shared", "per_layer"] = "shared"
    layers: LayerChoice = LayerChoice()


class Training(Frozen):
    """Learned channel scales (arXiv 2606.09927, section on trainable smooth rotation).

    ``batch_tokens`` null is the paper's full batch; ``max_log_ratio`` is the optional bound |log s − log s₀| ≤ δ.
    """

    steps: Count = 800
    warmup: NonNegativeInt = 5
    patience: Count = 80
    learning_rates: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=16)] = (0.02,)
    scope: Literal["shared", "per_layer"] = "shared"
    start: Literal["transform", "l2", "ones"] = "transform"
    batch_tokens: Annotated[int, Field(strict=True, ge=16, le=1_048_576)] | None = 384
    max_log_ratio: Annotated[float, Field(strict=True, gt=0.0, le=100.0)] | None = None


class LowestError(Frozen):
    """Per layer, keep the candidate transform with the lowest error on validation tokens."""

    kind: Literal["lowest_error"] = "lowest_error"
    candidates: Annotated[tuple[TransformKind, ...], Field(min_length=1, max_length=8)] = (
        TransformKind.NONE,
        TransformKind.ROTATION,
        TransformKind.SMOOTH_ROTATION,
    )


class Override(Frozen):
    """Different settings for the linears whose name matches: ``re:`` and a pattern, or a name's last component."""

    match: Name
    weights: WeightQuantization | None = None
    activations: ActivationQuantization | None = None
    transform: Transform | None = None


class Policy(Frozen):
    """A whole policy. As a request every field may be left out; :func:`resolve_policy` fills it from the preset."""

    version: Literal[1] = 1
    preset: Name | None = None
    weights: WeightQuantization = WeightQuantization()
    activations: ActivationQuantization = ActivationQuantization()
    targets: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] = ("down_proj",)
    ignore: Annotated[tuple[Name, ...], Field(max_length=64)] = ("lm_head",)
    transform: Transform = Transform()
    search: GridSearch | None = None
    training: Training | None = None
    selection: LowestError | None = None
    overrides: Annotated[tuple[Override, ...], Field(max_length=64)] = ()
