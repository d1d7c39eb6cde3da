"""The errors that quantization causes in a linear, or in every linear of a site: E, Ẽ, SQNR and cosine.

    E = ‖Y − Q(X') Q(W')ᵀ‖_F      Ẽ = E / (‖Y‖_F + ε)      SQNR = −20 log10 Ẽ      (arXiv 2606.09927; not squared)

Shapes: T tokens, I input channels, O output channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.grids import fake_quantize_activation, fake_quantize_weight, shared_peak
from quant_engine.policy import ActivationQuantization, WeightQuantization
from quant_engine.transforms import SitePlan, transform_activation, transform_weight

EPSILON: Final = 1e-12
"""ε of Ẽ, and the lower bound of the ratio in the SQNR (240 dB)."""

_CHUNK_TOKENS: Final = 4096


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """One linear's error on one set of tokens.

    Attributes:
        error: E = ‖Y − Ŷ‖_F, in the units of Y.
        error_normalized: Ẽ = E / (‖Y‖_F + ε).
        sqnr_db: −20 log10 Ẽ, in dB.
        cosine: of Y and Ŷ as vectors; 1 when both are zero.
    """

    error: float
    error_normalized: float
    sqnr_db: float
    cosine: float


def layer_errors(
    x_TI: Tensor, w_OI: Tensor, plan: SitePlan, weights: WeightQuantization, activations: ActivationQuantization
) -> LayerErrors:
    """Measure one linear Y = X Wᵀ under ``plan`` and the two grids, in chunks of tokens.

    The round-to-nearest baseline is the plan of kind ``none``.

    Raises:
        UnsupportedPolicy: ``weights.group_size`` does not divide I.
        NumericalInstability: the error is not finite.
    """
    return site_errors(x_TI, [w_OI], plan, weights, activations)[0]


def site_errors(
    x_TI: Tensor,
    linears: Sequence[Tensor],
    plan: SitePlan,
    weights: WeightQuantization,
    activations: ActivationQuantization,
    *,
    rounded: Sequence[Tensor] | None = None,
) -> tuple[LayerErrors, ...]:
    """Measure each linear [O, I] that reads the site. The activations are transformed and rounded only once.

    Each weight is rounded by itself, so a per-tensor scale covers only one linear.

    Args:
        rounded: Q(W') of each linear if it is known (GPTQ's). None rounds to nearest.

    Raises:
        UnsupportedPolicy, NumericalInstability: as :func:`layer_errors`.
    """
    activations = plan.clipped(activations)
    with torch.no_grad():
        rounded = rounded_weights(linears, plan, weights) if rounded is None else rounded
        sums = [_Sums() for _ in linears]
        for chunk_TI in torch.split(x_TI, _CHUNK_TOKENS):
            moved_TI = transform_activation(chunk_TI, plan)
            inputs_TI = fake_quantize_activation(moved_TI, activations, peak=plan.input_peak)
            # Y comes from the original input and weight, so that an inexact transform would count as an error.
            for each, w_OI, rounded_OI in zip(sums, linears, rounded, strict=True):
                each.add(chunk_TI @ w_OI.T, inputs_TI @ rounded_OI.T)
    return tuple(each.errors() for each in sums)


def rounded_weights(linears: Sequence[Tensor], plan: SitePlan, weights: WeightQuantization) -> list[Tensor]:
    """Q(W A⁻ᵀ) of each linear, rounded to nearest, with the plan's learned clip of its rows if it has one."""
    transformed = [transform_weight(w_OI, plan) for w_OI in linears]
    # The peak is shared: NVFP4 has one tensor scale for linears that run as one.
    peak, clips = shared_peak(transformed), weight_clips(linears, plan)
    return [
        fake_quantize_weight(w_OI, weights, clip_ratio_R1=clip_R1, peak=peak)
        for w_OI, clip_R1 in zip(transformed, clips, strict=True)
    ]


def weight_clips(linears: Sequence[Tensor], plan: SitePlan) -> list[Tensor | None]:
    """The plan's learned clip ratio of each scale of each linear, [R, 1]; None if nothing was learned."""
    if plan.weight_clip_OG is None:
        return [None] * len(linears)
    return [clip_OG.reshape(-1, 1) for clip_OG in plan.weight_clip_OG.split([w_OI.shape[0] for w_OI in linears])]


def plan_errors(
    x_TI: Tensor,
    linears: Sequence[Tensor],
    plans: Sequence[SitePlan],
    weights: WeightQuantization,
    activations: ActivationQuantization,
) -> tuple[float, ...]:
    """E of the whole site, with its linears as one, under each plan. Y is computed once for all plans.

    Raises:
        UnsupportedPolicy, NumericalInstability: as :func:`layer_errors`.
    """
    with torch.no_grad():
        outputs = [x_TI @ w_OI.T for w_OI in linears]
        return tuple(_plan_error(x_TI, linears, outputs, plan, weights, activations) for plan in plans)


def _plan_error(
    x_TI: Tensor,
    linears: Sequence[Tensor],
    outputs: Sequence[Tensor],
    plan: SitePlan,
    weights: WeightQuantization,
    activations: ActivationQuantization,
) -> float:
    rounded = rounded_weights(linears, plan, weights)
    activations = plan.clipped(activations)
    total = 0.0
    # Y of all tokens is computed already; the chunks limit the memory for X' and Ŷ.
    for first in range(0, x_TI.shape[0], _CHUNK_TOKENS):
        chunk = slice(first, first + _CHUNK_TOKENS)
        moved_TI = transform_activation(x_TI[chunk], plan)
        inputs_TI = fake_quantize_activation(moved_TI, activations, peak=plan.input_peak)
        for y_TO, rounded_OI in zip(outputs, rounded, strict=True):
            difference_TO = y_TO[chunk] - inputs_TI @ rounded_OI.T
            total += _inner(difference_TO, difference_TO)
    return math.sqrt(_finite(total))


class _Sums:
    """⟨Y, Y⟩, ⟨Ŷ, Ŷ⟩, ⟨Y, Ŷ⟩ and ‖Y − Ŷ‖², summed in double precision over chunks of tokens."""

    def __init__(self) -> None:
        self.original = self.quantized = self.product = self.difference = 0.0

    def add(self, y_TO: Tensor, quantized_TO: Tensor) -> None:
        self.original += _inner(y_TO, y_TO)
        self.quantized += _inner(quantized_TO, quantized_TO)
        self.product += _inner(y_TO, quantized_TO)
        # Not ⟨Y, Y⟩ + ⟨Ŷ, Ŷ⟩ − 2 ⟨Y, Ŷ⟩, which would cancel if the error is small.
        self.difference += _inner(difference_TO := y_TO - quantized_TO, difference_TO)

    def errors(self) -> LayerErrors:
        error = math.sqrt(_finite(self.difference))
        normalized = error / (math.sqrt(self.original) + EPSILON)
        norms = math.sqrt(self.original * self.quantized)
        return LayerErrors(
            error=error,
            error_normalized=normalized,
            sqnr_db=-20.0 * math.log10(max(normalized, EPSILON)),
            cosine=self.product / norms if norms else float(self.original == self.quantized),
        )


def _inner(a_TO: Tensor, b_TO: Tensor) -> float:
    """⟨A, B⟩, computed per token in the tensors' own precision and summed over the tokens in double precision."""
    return float(torch.linalg.vecdot(a_TO, b_TO).sum(dtype=torch.float64))


def _finite(square: float) -> float:
    if not math.isfinite(square):
        raise NumericalInstability(
            detail="The quantization error of a layer is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    return square
