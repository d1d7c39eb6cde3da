"""How a scale policy is searched."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from quant_engine.policy.fields import Count, Flag, Fraction, Frozen, LearningRate, NonNegativeInt, Quantile, kind_among

Norm = Annotated[float, Field(strict=True, ge=1.0, le=64.0)]


class LayerChoice(Frozen):
    """How many layers the search is scored on: the ``critical`` ones with the largest baseline errors, and ``normal``
    others."""

    critical: Count = 3
    normal: NonNegativeInt = 2


class GridSearch(Frozen):
    """A grid of scale policies: every (α, q) pair, and every other listed statistic, is tried.

    ``scope`` "shared" takes one policy for all layers, scored on the selected ones; "per_layer" takes one for each
    layer.
    """

    kind: Literal["grid"] = "grid"
    alpha: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=64, fail_fast=True)] = (0.5,)
    q: Annotated[tuple[Quantile, ...], Field(max_length=64, fail_fast=True)] = (1.0,)
    l2: Flag = False
    p: Annotated[tuple[Norm, ...], Field(max_length=16, fail_fast=True)] = ()
    scope: Literal["shared", "per_layer"] = "shared"
    layers: LayerChoice = LayerChoice()


class PaperExperiment(Frozen):
    """The experiment families of arXiv 2606.09927 (N1, N2, N3, T1, T2, T3), run as the job's search and training.

    ``alpha`` is N1's grid and ``q`` is N2's. N3 crosses the ``top`` best of each. T1 trains from s = 1 at every rate.
    T2 trains from the ``top`` policies of N3 at the best rate and the next smaller one. T3 trains every layer that way.
    """

    kind: Literal["paper"] = "paper"
    # 0.25 … 0.75 in 21 steps, the paper's grid.
    alpha: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=64, fail_fast=True)] = tuple(
        round(0.25 + 0.025 * i, 6) for i in range(21)
    )
    # q_i = 1 − 0.05 · 10^(−2i/15) for i = 0 … 14, and q = 1, as in the paper.
    q: Annotated[tuple[Quantile, ...], Field(min_length=1, max_length=64, fail_fast=True)] = (
        *(round(1.0 - 0.05 * 10 ** (-2 * i / 15), 6) for i in range(15)),
        1.0,
    )
    top: Annotated[int, Field(strict=True, ge=1, le=16)] = 5
    # Five rates from 5e-3 to 2e-2, log-spaced.
    learning_rates: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=16, fail_fast=True)] = tuple(
        round(5e-3 * 4 ** (i / 4), 6) for i in range(5)
    )
    steps: Count = 800
    warmup: NonNegativeInt = 5
    patience: Count = 80
    batch_tokens: Annotated[int, Field(strict=True, ge=16, le=1_048_576)] | None = None
    layers: LayerChoice = LayerChoice()


AnySearch = Annotated[
    Annotated[GridSearch, Tag("grid")] | Annotated[PaperExperiment, Tag("paper")],
    kind_among(GridSearch, PaperExperiment),
]
