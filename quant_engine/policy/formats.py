"""Number formats, and how weights and activations are rounded to them."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from quant_engine.policy.fields import Flag, Fraction, Frozen


class NumberFormat(StrEnum):
    """Symmetric signed integer grids and fp8 (e4m3); ``none`` leaves the tensor in floating point."""

    INT2 = "int2"
    INT3 = "int3"
    INT4 = "int4"
    INT5 = "int5"
    INT6 = "int6"
    INT7 = "int7"
    INT8 = "int8"
    FP8 = "fp8"
    NONE = "none"

    @property
    def bits(self) -> int | None:
        """Width in bits, or None for ``none``."""
        return None if self is NumberFormat.NONE else int(self.value.lstrip("intfp"))

    @property
    def is_float(self) -> bool:
        """Whether the codes are floating-point numbers."""
        return self is NumberFormat.FP8


class GptqSettings(Frozen):
    """GPTQ (arXiv 2210.17323): ``damping`` × the mean diagonal is added to the Hessian, updates are lazy in blocks.

    ``act_order`` rounds the columns by falling Hessian diagonal, group scales staying those of the original order.
    ``correction`` is how far a weight is first refitted, by least squares, to the input that it gets from the
    quantized layers before it (0: not at all; arXiv 2504.02692, arXiv 2504.09629).
    """

    damping: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.01
    block_size: Annotated[int, Field(strict=True, ge=1, le=65536)] = 128
    act_order: Flag = True
    correction: Fraction = 0.0


class WeightQuantization(Frozen):
    """How a weight matrix [out, in] is rounded. ``group_size`` counts input channels that share a scale.

    ``clip`` "mse" shrinks each scale to where the squared rounding error is smallest; ``gptq`` is for rounding "gptq".
    """

    format: NumberFormat = NumberFormat.INT4
    granularity: Literal["channel", "group", "tensor"] = "channel"
    group_size: Annotated[int, Field(strict=True, ge=8, le=65536)] | None = None
    symmetric: Literal[True] = True
    clip: Literal["none", "mse"] = "none"
    rounding: Literal["rtn", "gptq"] = "rtn"
    gptq: GptqSettings = GptqSettings()


class ActivationQuantization(Frozen):
    """How a linear's input [tokens, in] is rounded, dynamically. ``clip_ratio`` shrinks the absmax of the scale.

    ``clip`` "search" looks for each site's own ratio on fit tokens, and ``clip_ratio`` has to stay 1.
    """

    format: NumberFormat = NumberFormat.INT4
    granularity: Literal["token"] = "token"
    symmetric: Literal[True] = True
    clip: Literal["none", "search"] = "none"
    clip_ratio: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
