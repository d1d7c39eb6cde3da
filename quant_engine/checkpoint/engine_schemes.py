"""What serving engines make of each kind of quantized linear, as data.

docs/serving.md says what of this an engine's own code was seen to do when it was executed on our configurations
(``benchmarks/routing.py``), and what was read in its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from compressed_tensors.config import CompressionFormat

from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.policy import NumberFormat

Verdict = Literal["runs", "differs", "refuses", "wrong"]
"""Runs what was measured, on kernels of its own; runs, but computes something else than was measured; stops with an
error; loads, and gives wrong logits without one."""


class Scheme(StrEnum):
    """A combination of weights and activations that engines route alike; the value is what a card calls it."""

    WEIGHT_ONLY = "packed 4- or 8-bit weights"
    ODD_WEIGHT_ONLY = "packed weights of 2, 3, 5, 6 or 7 bits"
    INT_A4 = "packed weights, 4-bit activations"
    INT_A8 = "packed weights, 8-bit activations"
    INT_OTHER = "packed weights, activations of another width"
    INT_TENSOR = "packed weights with one scale a tensor"
    W8A8 = "int8 weights and activations"
    FP8 = "fp8 weights and activations"
    FP8_TENSOR = "fp8 weights with one scale a tensor, fp8 activations"
    FP8_WEIGHT_ONLY = "fp8 weights"
    NVFP4 = "NVFP4 weights and activations"
    NVFP4_WEIGHT_ONLY = "NVFP4 weights"
    MXFP4 = "MXFP4 weights and activations"
    MXFP4_WEIGHT_ONLY = "MXFP4 weights"


@dataclass(frozen=True)
class Statement:
    """What an engine does, and why or when."""

    verdict: Verdict
    note: str


VERSIONS: Final = {
    "transformers": "5.17.0, run by the gate and the tests",
    "vLLM": "0.33.0, its routing executed, its kernels read",
    "SGLang": "0.5.23, its routing executed, its kernels read",
}

_PACKED: Final[Mapping[int | None, Scheme]] = {
    None: Scheme.WEIGHT_ONLY,
    **dict.fromkeys((2, 3, 5, 6, 7), Scheme.INT_OTHER),
    4: Scheme.INT_A4,
    8: Scheme.INT_A8,
}
_LAYOUTS: Final[Mapping[tuple[CompressionFormat, int | None], Scheme]] = {
    **{(CompressionFormat.pack_quantized, bits): scheme for bits, scheme in _PACKED.items()},
    (CompressionFormat.int_quantized, 8): Scheme.W8A8,
    (CompressionFormat.float_quantized, 8): Scheme.FP8,
    (CompressionFormat.float_quantized, None): Scheme.FP8_WEIGHT_ONLY,
    (CompressionFormat.nvfp4_pack_quantized, 4): Scheme.NVFP4,
    (CompressionFormat.nvfp4_pack_quantized, None): Scheme.NVFP4_WEIGHT_ONLY,
    (CompressionFormat.mxfp4_pack_quantized, 4): Scheme.MXFP4,
    (CompressionFormat.mxfp4_pack_quantized, None): Scheme.MXFP4_WEIGHT_ONLY,
}
"""By the layout of the weights and the bits of the activations."""
_PER_TENSOR: Final = {**dict.fromkeys(_PACKED.values(), Scheme.INT_TENSOR), Scheme.FP8: Scheme.FP8_TENSOR}
_MERGED: Final = (
    "The scales of q, k and v, and of gate and up, are merged into the largest, and those weights rounded again"
)

_VLLM: Final[Mapping[Scheme, Statement]] = {
    Scheme.WEIGHT_ONLY: Statement(
        "runs",
        "Scheme WNA16, from sm75 on. With tensor parallelism every rank's share of the inputs has to be a whole number "
        "of groups.",
    ),
    Scheme.ODD_WEIGHT_ONLY: Statement("runs", "Scheme WNA16, on its Humming kernels alone (CUDA, from sm75 on)."),
    Scheme.INT_A4: Statement(
        "differs",
        "Scheme WNA4Int. 4- and 8-bit weights meet 4-bit activations only with `--linear-backend humming` on sm75 to "
        "sm89; everywhere else activations have 8 or 16 bits.",
    ),
    Scheme.INT_A8: Statement(
        "differs",
        "Scheme WNA8Int. Its default kernels leave activations in 16 bits; Humming rounds them to 8, and only where "
        "weights have one scale a channel.",
    ),
    Scheme.INT_OTHER: Statement("refuses", "It has no scheme for activations of this width (NotImplementedError)."),
    Scheme.INT_TENSOR: Statement(
        "refuses", "It has no scheme for packed weights with one scale a tensor (NotImplementedError)."
    ),
    Scheme.W8A8: Statement(
        "runs", "Scheme W8A8Int8, from sm75 to sm90; vLLM's documentation rules INT8 out on Blackwell."
    ),
    Scheme.FP8: Statement(
        "runs", "Scheme W8A8Fp8, from sm89 on; older GPUs get W8A16Fp8 and leave activations in 16 bits."
    ),
    Scheme.FP8_TENSOR: Statement(
        "differs", f"Scheme W8A8Fp8, from sm89 on; older GPUs leave activations in 16 bits. {_MERGED}."
    ),
    Scheme.FP8_WEIGHT_ONLY: Statement("runs", "Scheme W8A16Fp8, from sm75 on."),
    Scheme.NVFP4: Statement(
        "runs",
        "Scheme W4A4Fp4: four bits on both sides from sm100 on (Blackwell); older GPUs keep activations in 8 or 16 "
        "bits.",
    ),
    Scheme.NVFP4_WEIGHT_ONLY: Statement("runs", "Scheme W4A4Fp4 with 16-bit activations, from sm75 on."),
    Scheme.MXFP4: Statement(
        "runs",
        "Scheme W4A4Mxfp4, from sm80 on: four bits on both sides from sm100 on (Blackwell); older GPUs keep "
        "activations in 8 or 16 bits.",
    ),
    Scheme.MXFP4_WEIGHT_ONLY: Statement(
        "differs", "Scheme W4A4Mxfp4, from sm80 on: from sm100 on it rounds activations to MXFP4 as well."
    ),
}

_SGLANG_REFUSES: Final = Statement("refuses", "It has no scheme for linears like these (NotImplementedError).")
_SGLANG: Final[Mapping[Scheme, Statement]] = {
    Scheme.WEIGHT_ONLY: Statement(
        "runs",
        "Scheme WNA16 on Marlin, from sm80 on: inputs have to divide by 128, outputs by 64, and groups be 32, 64 or "
        "128 channels.",
    ),
    Scheme.ODD_WEIGHT_ONLY: Statement("refuses", "It packs 4 and 8 bits only (ImportError)."),
    Scheme.INT_A4: _SGLANG_REFUSES,
    Scheme.INT_A8: _SGLANG_REFUSES,
    Scheme.INT_OTHER: _SGLANG_REFUSES,
    Scheme.INT_TENSOR: _SGLANG_REFUSES,
    Scheme.W8A8: Statement("runs", "Scheme W8A8Int8, from sm80 to sm90: its kernel knows no later GPU."),
    Scheme.FP8: Statement("runs", "Scheme W8A8Fp8, from sm89 on; from sm80 on activations stay in 16 bits."),
    Scheme.FP8_TENSOR: Statement(
        "differs", f"Scheme W8A8Fp8, from sm89 on; from sm80 on activations stay in 16 bits. {_MERGED}."
    ),
    Scheme.FP8_WEIGHT_ONLY: Statement("runs", "Scheme W8A16Fp8, from sm80 on."),
    Scheme.NVFP4: Statement(
        "runs", "Scheme W4A4Fp4 from sm100 on (Blackwell); from sm80 on it warns and leaves activations in 16 bits."
    ),
    Scheme.NVFP4_WEIGHT_ONLY: Statement("runs", "Scheme W4A16Fp4, from sm80 on."),
    Scheme.MXFP4: _SGLANG_REFUSES,
    Scheme.MXFP4_WEIGHT_ONLY: _SGLANG_REFUSES,
}

STATEMENTS: Final[Mapping[str, Mapping[Scheme, Statement]]] = {
    "transformers": dict.fromkeys(
        Scheme, Statement("runs", "Plain `from_pretrained` gives the quantized model's logits, bit for bit.")
    ),
    "vLLM": _VLLM,
    "SGLang": _SGLANG,
}


def scheme_of(linear: QuantizedLinear) -> Scheme:
    """How engines see one linear.

    Raises:
        KeyError: there is no statement about its layout.
    """
    activations = linear.activations.format.bits
    scheme = _LAYOUTS[linear.format, activations]
    if linear.weights.granularity == "tensor":
        return _PER_TENSOR.get(scheme, scheme)
    plain = linear.weights.format in (NumberFormat.INT4, NumberFormat.INT8)
    return Scheme.ODD_WEIGHT_ONLY if scheme is Scheme.WEIGHT_ONLY and not plain else scheme
