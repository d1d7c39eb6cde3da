"""How each layer's transform is chosen among candidates."""

from typing import Annotated, Final, Literal

from pydantic import Field, Tag

from quant_engine.policy.fields import Count, Frozen, LearningRate, kind_among
from quant_engine.policy.transform import Statistic, Transform, TransformKind

Candidate = TransformKind | Transform
Candidates = Annotated[tuple[Candidate, ...], Field(min_length=1, max_length=16, fail_fast=True)]
_WUSH: Final = Transform(kind=TransformKind.WUSH, block_size=64)
_SMOOTH_ROTATION: Final = Transform(statistic=Statistic(kind="l2"))
_CANDIDATES: Final = (TransformKind.NONE, TransformKind.ROTATION, TransformKind.SMOOTH_ROTATION)


class LowestError(Frozen):
    """For each layer, choose the candidate transform with the lowest error on validation tokens."""

    kind: Literal["lowest_error"] = "lowest_error"
    """The kind of the selection."""
    candidates: Candidates = _CANDIDATES
    """Each is a kind, whose other fields come from ``policy.transform``, or a complete transform."""
    online_cost: Annotated[float, Field(strict=True, ge=0.0, le=100.0)] = 0.0
    """λ: a candidate's error counts as E · (1 + λ · c), where c is its online multiply-adds per token divided by the
    linears' own."""


class Kurtosis(Frozen):
    """For each layer, choose one of two transforms by the robust z-score of the weights' kurtosis (arXiv 2511.17809).

    z = 0.6745 (κ − median) / (MAD + ε) over the layers of one role group. We do not know the paper's values. The
    defaults are fitted to the choices of the lowest error on SmolLM2-135M; they agree on 65 % of the sites
    (docs/measurements.md).
    """

    kind: Literal["kurtosis"] = "kurtosis"
    """The kind of the selection."""
    outlying: Candidate = _WUSH
    """The transform where ``sign`` · z > ``beta``."""
    typical: Candidate = _SMOOTH_ROTATION
    """The transform elsewhere."""
    sign: Literal[-1, 1] = 1
    """Whether large (1) or small (-1) z are outlying."""
    beta: Annotated[float, Field(strict=True, ge=-100.0, le=100.0)] = -1.05
    """The threshold of ``sign`` · z."""


class Differentiable(Frozen):
    """For each layer, choose the candidate with the largest learned weight (arXiv 2511.17809).

    The weights are softmax(a/τ)_t, learned in f = Σ softmax(a/τ)_t f_t.
    """

    kind: Literal["differentiable"] = "differentiable"
    """The kind of the selection."""
    candidates: Candidates = _CANDIDATES
    """Each is a kind, whose other fields come from ``policy.transform``, or a complete transform."""
    temperature: Annotated[float, Field(strict=True, gt=0.0, le=100.0)] = 1.0
    """τ of the softmax."""
    steps: Count = 60
    """The steps that the weights a are learned in."""
    learning_rate: LearningRate = 0.1
    """The learning rate of the weights a."""


AnySelection = Annotated[
    Annotated[LowestError, Tag("lowest_error")]
    | Annotated[Kurtosis, Tag("kurtosis")]
    | Annotated[Differentiable, Tag("differentiable")],
    kind_among(LowestError, Kurtosis, Differentiable),
]
