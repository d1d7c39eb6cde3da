"""Number formats, and how weights and activations are rounded to them."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from quant_engine.policy.fields import Flag, Fraction, Frozen


class NumberFormat(StrEnum):
    """Symmetric signed integer grids, fp8 (e4m3), and fp4 (e2m1) with a scale for every small group of channels.

    ``nvfp4`` has groups of 16 with e4m3 scales below one fp32 scale of the tensor; ``mxfp4`` groups of 32 whose scales
    are powers of two (OCP Microscaling 1.0). ``none`` leaves the tensor in floating point.
    """

    INT2 = "int2"
    INT3 = "int3"
    INT4 = "int4"
    INT5 = "int5"
    INT6 = "int6"
    INT7 = "int7"
    INT8 = "int8"
    FP8 = "fp8"
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    NONE = "none"

    @property
    def bits(self) -> int | None:
        """Width in bits, or None for ``none``."""
        return None if self is NumberFormat.NONE else int(self.value[-1])

    @property
    def is_float(self) -> bool:
        """Whether the codes are floating-point numbers."""
        return "fp" in self.value

    @property
    def group_size(self) -> int | None:
        """How many neighbouring channels share a scale where the format itself says so."""
        return _OWN_GROUPS.get(self)


_OWN_GROUPS: Final = {NumberFormat.NVFP4: 16, NumberFormat.MXFP4: 32}


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

    nvfp4 and mxfp4 have groups of their own, which need not be spelled out.
    ``clip`` "mse" shrinks each scale to where the squared rounding error is smallest; ``gptq`` is for rounding "gptq".
    """

    format: NumberFormat = NumberFormat.INT4
    granularity: Literal["channel", "group", "tensor"] = "channel"
    group_size: Annotated[int, Field(strict=True, ge=8, le=65536)] | None = None
    symmetric: Literal[True] = True
    clip: Literal["none", "mse"] = "none"
    rounding: Literal["rtn", "gptq"] = "rtn"
    gptq: GptqSettings = GptqSettings()

    @model_validator(mode="before")
    @classmethod
    def _with_own_groups(cls, fields: Any) -> Any:
        """The groups of a format that has its own, unless the request names some."""
        if not isinstance(fields, dict) or {"granularity", "group_size"} & fields.keys():
            return fields
        own = next((size for each, size in _OWN_GROUPS.items() if fields.get("format") == each), None)
        return fields if own is None else fields | {"granularity": "group", "group_size": own}


class ActivationQuantization(Frozen):
    """How a linear's input [tokens, in] is rounded, dynamically. ``clip_ratio`` shrinks the absmax of the scale.

    A token has one scale, or, in nvfp4 and mxfp4, one for each of the format's groups of channels.
    ``clip`` "search" looks for each site's own ratio on fit tokens, and ``clip_ratio`` has to stay 1.
    """

    format: NumberFormat = NumberFormat.INT4
    granularity: Literal["token"] = "token"
    symmetric: Literal[True] = True
    clip: Literal["none", "search"] = "none"
    clip_ratio: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
