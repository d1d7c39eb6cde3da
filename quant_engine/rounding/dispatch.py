"""Choose the rounding that a policy names.

Shapes: O output channels, I input channels, R rows of values that share a scale.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from quant_engine.grids import Quantized
from quant_engine.policy import WeightQuantization
from quant_engine.rounding.factor import GptqFactor
from quant_engine.rounding.gptq import gptq
from quant_engine.rounding.rtn import round_to_nearest

_Hessian = Tensor | GptqFactor | None
_Rounding = Callable[[Tensor, WeightQuantization, torch.dtype, _Hessian, Tensor | None, Tensor | None], Quantized]


def round_weight(
    w_OI: Tensor,
    spec: WeightQuantization,
    dtype: torch.dtype,
    *,
    hessian: Tensor | GptqFactor | None = None,
    clip_ratio_R1: Tensor | None = None,
    peak: Tensor | None = None,
) -> Quantized:
    """Round W' by ``spec.rounding``, and return its codes and scales for a checkpoint of ``dtype``.

    Args:
        w_OI: W' = W A⁻ᵀ, transformed already.
        hessian: Aᵀ H A [I, I] of the transformed input, or its factor; only "gptq" needs it.
        clip_ratio_R1: a learned ρ that replaces ``spec.clip``, as for :func:`quant_engine.grids.weight_scale`.
        peak: the largest absolute value of all weights that engines run as one; NVFP4 has one tensor scale for them.

    Raises:
        ValueError: "gptq" without a Hessian.
        UnsupportedPolicy: ``spec`` has no codes, or a ``group_size`` that does not divide I.
        NumericalInstability: as for :func:`gptq`.
    """
    return _ROUNDINGS[spec.rounding](w_OI, spec, dtype, hessian, clip_ratio_R1, peak)


def _rtn(
    w_OI: Tensor,
    spec: WeightQuantization,
    dtype: torch.dtype,
    _: _Hessian,
    clip_ratio_R1: Tensor | None,
    peak: Tensor | None,
) -> Quantized:
    return round_to_nearest(w_OI, spec, dtype, clip_ratio_R1=clip_ratio_R1, peak=peak)


def _gptq(
    w_OI: Tensor,
    spec: WeightQuantization,
    dtype: torch.dtype,
    hessian: _Hessian,
    clip_ratio_R1: Tensor | None,
    peak: Tensor | None,
) -> Quantized:
    if hessian is None:
        raise ValueError("rounding 'gptq' needs the Hessian of the layer's input")
    return gptq(w_OI, hessian, spec, dtype, clip_ratio_R1=clip_ratio_R1, peak=peak)


_ROUNDINGS: Final[dict[str, _Rounding]] = {"rtn": _rtn, "gptq": _gptq}
