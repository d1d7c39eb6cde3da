"""Number formats, and how weights and activations are rounded to them."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from quant_engine.policy.fields import Flag, Fraction, Frozen
from quant_engine.policy.format_spec import EngineSchemes, FormatSpec, Pairing, Scheme
from quant_engine.policy.nulls import without_left_out


def _integer(
    bits: int, *, weight_only: Scheme, activations: Scheme = Scheme.INT_OTHER, pairing: Pairing | None = None
) -> FormatSpec:
    """Return the row of the signed integers of ``bits`` bits, packed densely."""
    return FormatSpec(
        bits=bits,
        is_float=False,
        group_size=None,
        strategy=None,
        static_peak=False,
        plain_weights=False,
        export_dtype=None,
        layout="pack-quantized",
        pairing=pairing,
        schemes=EngineSchemes(
            weight_only=weight_only,
            activations=activations,
            weight_only_per_tensor=Scheme.INT_TENSOR,
            activations_per_tensor=Scheme.INT_TENSOR,
        ),
        stored_orders=(),
    )


_ODD: Final = Scheme.ODD_WEIGHT_ONLY
_INT4: Final = _integer(4, weight_only=Scheme.WEIGHT_ONLY, activations=Scheme.INT_A4)
_INT8: Final = _integer(
    8,
    weight_only=Scheme.WEIGHT_ONLY,
    activations=Scheme.INT_A8,
    pairing=Pairing(layout="int-quantized", scheme=Scheme.W8A8),
)
_FP8: Final = FormatSpec(
    bits=8,
    is_float=True,
    group_size=None,
    strategy=None,
    static_peak=False,
    plain_weights=True,
    export_dtype=None,
    layout="float-quantized",
    pairing=None,
    schemes=EngineSchemes(
        weight_only=Scheme.FP8_WEIGHT_ONLY,
        activations=Scheme.FP8,
        weight_only_per_tensor=Scheme.FP8_WEIGHT_ONLY,
        activations_per_tensor=Scheme.FP8_TENSOR,
    ),
    stored_orders=(),
)
_NVFP4: Final = FormatSpec(
    bits=4,
    is_float=True,
    group_size=16,
    strategy="tensor_group",
    static_peak=True,
    plain_weights=False,
    export_dtype="bfloat16",
    layout="nvfp4-pack-quantized",
    pairing=None,
    schemes=EngineSchemes(
        weight_only=Scheme.NVFP4_WEIGHT_ONLY,
        activations=Scheme.NVFP4,
        weight_only_per_tensor=Scheme.NVFP4_WEIGHT_ONLY,
        activations_per_tensor=Scheme.NVFP4,
    ),
    stored_orders=(16, 32, 64, 128),
)
_MXFP4: Final = FormatSpec(
    bits=4,
    is_float=True,
    group_size=32,
    strategy="group",
    static_peak=False,
    plain_weights=False,
    export_dtype="bfloat16",
    layout="mxfp4-pack-quantized",
    pairing=None,
    schemes=EngineSchemes(
        weight_only=Scheme.MXFP4_WEIGHT_ONLY,
        activations=Scheme.MXFP4,
        weight_only_per_tensor=Scheme.MXFP4_WEIGHT_ONLY,
        activations_per_tensor=Scheme.MXFP4,
    ),
    stored_orders=(),
)
_NONE: Final = FormatSpec(
    bits=None,
    is_float=False,
    group_size=None,
    strategy=None,
    static_peak=False,
    plain_weights=False,
    export_dtype=None,
    layout=None,
    pairing=None,
    schemes=None,
    stored_orders=(),
)


class NumberFormat(StrEnum):
    """Symmetric signed integer grids, fp8 (e4m3), and fp4 (e2m1) with a scale for every small group of channels.

    ``nvfp4`` has groups of 16 with e4m3 scales, relative to one fp32 scale of the tensor. ``mxfp4`` has groups of 32
    whose scales are powers of two (OCP Microscaling 1.0). ``none`` leaves the tensor in floating point.
    """

    # A member is a name and a row, so that no format can be without a row.
    INT2 = "int2", _integer(2, weight_only=_ODD)
    INT3 = "int3", _integer(3, weight_only=_ODD)
    INT4 = "int4", _INT4
    INT5 = "int5", _integer(5, weight_only=_ODD)
    INT6 = "int6", _integer(6, weight_only=_ODD)
    INT7 = "int7", _integer(7, weight_only=_ODD)
    INT8 = "int8", _INT8
    FP8 = "fp8", _FP8
    NVFP4 = "nvfp4", _NVFP4
    MXFP4 = "mxfp4", _MXFP4
    NONE = "none", _NONE

    _value_: str
    spec: FormatSpec

    def __new__(cls, value: str, spec: FormatSpec) -> Self:
        """Create the member ``value`` with its row."""
        # The row is an attribute and not the value, so a member equals its name and is stored as it.
        member = str.__new__(cls, value)
        member._value_ = value
        member.spec = spec
        return member

    @property
    def bits(self) -> int | None:
        """Width in bits, or None for ``none``."""
        return self.spec.bits

    @property
    def is_float(self) -> bool:
        """Whether the codes are floating-point numbers."""
        return self.spec.is_float

    @property
    def is_integer(self) -> bool:
        """Whether the codes are integers."""
        return self.spec.is_integer

    @property
    def quantizes(self) -> bool:
        """Whether the format has codes: true of all but ``none``."""
        return self.spec.bits is not None

    @property
    def group_size(self) -> int | None:
        """How many neighboring channels share a scale, where the format itself fixes it."""
        return self.spec.group_size


def float_format(bits: int, group_size: int | None) -> NumberFormat | None:
    """Return the floating-point format with this width and these fixed groups, or None."""
    matching = (each for each in NumberFormat if each.is_float and (each.bits, each.group_size) == (bits, group_size))
    return next(matching, None)


def in_words(formats: Iterable[NumberFormat]) -> str:
    """Return formats as a message lists them: ``int8, fp8 or mxfp4``."""
    *most, last = (each.value for each in formats)
    return f"{', '.join(most)} or {last}" if most else last


class GptqSettings(Frozen):
    """The settings of GPTQ (arXiv 2210.17323)."""

    damping: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.01
    """This times the mean diagonal is added to the diagonal of the Hessian."""
    block_size: Annotated[int, Field(strict=True, ge=1, le=65536)] = 128
    """The columns whose updates are applied to the rest of the matrix together."""
    act_order: Flag = True
    """Round the columns in the order of falling Hessian diagonal. The groups stay those of the original order."""
    correction: Fraction = 0.0
    """How far a weight is first moved to the least-squares solution for the input that it gets from the quantized
    layers before it. 0: not at all (arXiv 2504.02692, arXiv 2504.09629)."""


class WeightQuantization(Frozen):
    """How a weight matrix [out, in] is rounded."""

    format: NumberFormat = NumberFormat.INT4
    """The number format of the weights. ``none`` is only for an override, which then leaves these linears alone."""
    granularity: Literal["channel", "group", "tensor"] = "channel"
    """The weights that share a scale: an output channel, a group of input channels, or the whole tensor."""
    group_size: Annotated[int, Field(strict=True, ge=8, le=65536, examples=[64])] | None = None
    """The input channels that share a scale, with granularity ``group`` alone. nvfp4 and mxfp4 have groups of their
    own."""
    symmetric: Flag = True
    """Whether zero is in the middle of the grid. False gives every scale of int4 weights a zero point; inputs then have
    to stay in floating point."""
    clip: Literal["none", "mse"] = "none"
    """``mse`` shrinks each scale to the value with the smallest squared rounding error."""
    rounding: Literal["rtn", "gptq"] = "rtn"
    """Round to nearest, or by GPTQ."""
    gptq: GptqSettings = GptqSettings()
    """The settings of rounding ``gptq``."""

    @model_validator(mode="before")
    @classmethod
    def _with_own_groups(cls, fields: Any) -> Any:
        """Add the groups of a format that fixes them, unless the request names some."""
        # This runs before the same step of the base.
        fields = without_left_out(cls, fields)
        if not isinstance(fields, dict) or {"granularity", "group_size"} & fields.keys():
            return fields
        # A format that does not exist is refused later, by the field itself.
        own = next((each.group_size for each in NumberFormat if each == fields.get("format")), None)
        return fields if own is None else fields | {"granularity": "group", "group_size": own}


class ActivationQuantization(Frozen):
    """How a linear's input [tokens, in] is rounded, dynamically."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"group_size"})

    format: NumberFormat = NumberFormat.INT4
    """The number format of the inputs. ``none`` leaves them in floating point."""
    granularity: Literal["token", "group"] = "token"
    """The channels of a token that share a scale: all of them, or a group. Groups of integers have to be those of the
    weights. nvfp4 and mxfp4 have groups of their own."""
    group_size: Annotated[int, Field(strict=True, ge=8, le=65536, examples=[64])] | None = None
    """The channels that share a scale, with granularity ``group`` alone."""
    symmetric: Flag = True
    """Whether zero is in the middle of the grid. False is for int8 inputs of int8 weights: a token's smallest and
    largest value are then the ends of its grid."""
    clip: Literal["none", "search"] = "none"
    """``search`` looks for a clip ratio for each site, on fit tokens."""
    clip_ratio: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
    """Multiplies the absmax that the scale is computed from. With clip ``search`` it has to stay 1."""
