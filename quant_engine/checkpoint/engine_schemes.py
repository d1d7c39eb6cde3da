"""What serving engines do with each kind of quantized linear, as data.

docs/serving.md states which facts come from executing an engine's code on our configurations
(``benchmarks/routing.py``), and which from reading its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from quant_engine.checkpoint.packing import QuantizedLinear
from quant_engine.policy.format_spec import Scheme

__all__ = ["STATEMENTS", "UNCHECKED", "VERSIONS", "Scheme", "Statement", "Verdict", "scheme_of"]

Verdict = Literal["runs", "differs", "refuses", "wrong", "unknown"]
"""In this order: computes what was measured, with kernels of its own; runs, but computes something else than was
measured; stops with an error; loads, and gives wrong logits without an error; nobody has checked."""


@dataclass(frozen=True)
class Statement:
    """A verdict about an engine, with its reason or its conditions."""

    verdict: Verdict
    note: str


VERSIONS: Final = {
    "transformers": "5.17.0, run by the gate and the tests",
    "vLLM": "0.33.0, its routing executed, its kernels read",
    "SGLang": "0.5.23, its routing executed, its kernels read",
}

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
    Scheme.INT_FP8: Statement(
        "differs",
        "Scheme W4A8Fp8, on sm90 alone (Hopper), for groups of 128. It rounds the scales of the groups to e4m3, "
        "relative to one scale a channel.",
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
    Scheme.INT_FP8: _SGLANG_REFUSES,
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


UNCHECKED: Final = Statement("unknown", "Nobody has checked what it does with this number format.")


def scheme_of(linear: QuantizedLinear) -> Scheme | None:
    """Return the scheme that engines choose for one linear; None where nobody has checked its number format.

    Raises:
        ValueError: the linear's weight is not quantized.
    """
    weights, activations = linear.weights, linear.activations
    if not weights.format.quantizes:
        raise ValueError(f"{linear.name} is not quantized")
    if linear.pairing is not None:
        return linear.pairing.scheme
    if weights.format.is_integer and activations.format.is_float:
        return Scheme.INT_FP8
    per_tensor = weights.granularity == "tensor"
    # Engines choose by the format of the activations, for every width of packed integer weights.
    schemes = activations.format.spec.schemes if activations.format.quantizes else weights.format.spec.schemes
    if schemes is None or weights.format.spec.schemes is None:
        return None
    if activations.format.quantizes:
        return schemes.activations_per_tensor if per_tensor else schemes.activations
    return schemes.weight_only_per_tensor if per_tensor else schemes.weight_only
