"""Learn a mixture of candidate transforms, and choose the candidate with the largest weight (arXiv 2511.17809).

    min over a of ‖Y − Σ_t p_t F_t‖²,   p = softmax(a / τ),   F_t = Q(X A_t) Q(W A_t⁻ᵀ)ᵀ

Because Σ p_t = 1, the loss is pᵀ G p with G_st = ⟨Y − F_s, Y − F_t⟩. The candidates' outputs are needed only once, in
chunks of tokens, and are not stored. So the loss covers every token, nothing is drawn at random, and a step costs
almost nothing.

The largest weight has a limited meaning. The loss is that of a *mixture*, which no layer runs. Rounding errors of
different candidates partly cancel, so the best mixture is rarely one candidate. If their errors are uncorrelated, the
optimum is p_t ∝ 1 / G_tt, and the argmax is the candidate with the lowest error. If they are correlated, a candidate
whose errors differ from the others' may weigh more than a better one. A low temperature brings the mixture closer to
one candidate, but makes the descent less smooth. Use lowest error if the result has to be the best single candidate.
This is the published method, on transforms whose own parameters were learned before.

Shapes: T tokens, I input channels, O output channels, N candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.evaluation.layer_errors import rounded_weights
from quant_engine.grids import fake_quantize_activation
from quant_engine.policy import ActivationQuantization, Differentiable, WeightQuantization
from quant_engine.transforms import SitePlan, transform_activation

_CHUNK_ELEMENTS: Final = 1 << 24
"""64 MiB of fp32."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The learned mixture.

    Attributes:
        weights: p of every candidate, in order; 0 if its outputs are not finite.
        index: the place of the largest weight; of equals, the earlier.
        loss: pᵀGp divided by the mean of G's diagonal; below 1 by the share that mixing gains over an average
            candidate.
    """

    weights: tuple[float, ...]
    index: int
    loss: float


def differentiable(
    x_fit_TI: Tensor,
    linears: Sequence[Tensor],
    plans: Sequence[SitePlan],
    weights: WeightQuantization,
    activations: ActivationQuantization,
    settings: Differentiable,
) -> Mixture:
    """Learn the weights of ``plans`` on a site's fit tokens, and find the largest.

    Raises:
        ValueError: there is no plan to choose from.
        UnsupportedPolicy: ``weights.group_size`` does not divide I.
        NumericalInstability: no candidate's outputs are finite.
    """
    if not plans:
        raise ValueError("there is no plan to choose from")
    return learned_mixture(error_gram(x_fit_TI, linears, plans, weights, activations), settings)


def error_gram(
    x_TI: Tensor,
    linears: Sequence[Tensor],
    plans: Sequence[SitePlan],
    weights: WeightQuantization,
    activations: ActivationQuantization,
    *,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> Tensor:
    """G [N, N], fp64, on the CPU: the inner products of the candidates' errors over all tokens and linears.

    ``chunk_elements`` limits how many output values of all candidates together are in memory at a time.
    """
    outputs = sum(w_OI.shape[0] for w_OI in linears)
    tokens = max(1, chunk_elements // (len(plans) * outputs))  # the errors [N, T, O] are in memory together
    gram_NN = torch.zeros(len(plans), len(plans), dtype=torch.float64)
    with torch.no_grad():
        rounded = [torch.cat(rounded_weights(linears, plan, weights)) for plan in plans]
        w_OI = torch.cat(list(linears))
        for chunk_TI in torch.split(x_TI, tokens):
            y_TO = chunk_TI @ w_OI.T
            inputs = [_rounded_inputs(chunk_TI, plan, activations) for plan in plans]
            errors_NTO = torch.stack([y_TO - a_TI @ q_OI.T for a_TI, q_OI in zip(inputs, rounded, strict=True)])
            gram_NN += _gram(errors_NTO).cpu()
    return gram_NN


def learned_mixture(gram_NN: Tensor, settings: Differentiable) -> Mixture:
    """Learn a with Adam from 0, in fp64, over the candidates whose diagonal in G is finite.

    Raises:
        NumericalInstability: no candidate's diagonal is finite.
    """
    finite = [index for index, square in enumerate(gram_NN.diagonal().tolist()) if square < float("inf")]
    if not finite:
        raise NumericalInstability(
            detail="No candidate transform gives finite outputs for a layer.",
            hint="Check the model's weights for NaN or infinity, or add a candidate that is a rotation.",
        )
    kept_NN = gram_NN[finite][:, finite]
    # Relative to an average candidate, as ``Mixture.loss`` is.
    kept_NN = kept_NN / kept_NN.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    p_N, loss = _descend(kept_NN, settings)
    weights = [0.0] * gram_NN.shape[0]
    for index, weight in zip(finite, p_N.tolist(), strict=True):
        weights[index] = weight
    return Mixture(weights=tuple(weights), index=max(finite, key=weights.__getitem__), loss=loss)


def _descend(gram_NN: Tensor, settings: Differentiable) -> tuple[Tensor, float]:
    # From a = 0, where all candidates have equal weights.
    logits_N = torch.zeros(gram_NN.shape[0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits_N], lr=settings.learning_rate)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            p_N = torch.softmax(logits_N / settings.temperature, dim=0)
            (p_N @ gram_NN @ p_N).backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
        optimizer.step()
    p_N = torch.softmax(logits_N.detach() / settings.temperature, dim=0)
    return p_N, float(p_N @ gram_NN @ p_N)


def _rounded_inputs(x_TI: Tensor, plan: SitePlan, activations: ActivationQuantization) -> Tensor:
    return fake_quantize_activation(transform_activation(x_TI, plan), plan.clipped(activations))


def _gram(errors_NTO: Tensor) -> Tensor:
    """⟨D_s, D_t⟩ [N, N], computed per token in the tensors' own precision and summed over the tokens in fp64."""
    d_TNO = errors_NTO.transpose(0, 1)
    return (d_TNO @ d_TNO.mT).sum(dim=0, dtype=torch.float64)
