"""How a scale policy is searched."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from quant_engine.policy.fields import Count, Flag, Fraction, Frozen, LearningRate, NonNegativeInt, Quantile, kind_among

Norm = Annotated[float, Field(strict=True, ge=1.0, le=64.0)]


class LayerChoice(Frozen):
    """How many layers a search is scored on."""

    critical: Count = 3
    """The layers with the largest baseline errors."""
    normal: NonNegativeInt = 2
    """Other layers, at percentiles of the baseline errors of the rest."""


class GridSearch(Frozen):
    """A grid of scale policies: every (α, q) pair, and every other listed statistic, is tried."""

    kind: Literal["grid"] = "grid"
    """The kind of the search."""
    alpha: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=64, fail_fast=True)] = (0.5,)
    """The values of α."""
    q: Annotated[tuple[Quantile, ...], Field(max_length=64, fail_fast=True)] = (1.0,)
    """The quantiles, each tried with every α."""
    l2: Flag = False
    """Whether the L2 norm is tried with every α."""
    p: Annotated[tuple[Norm, ...], Field(max_length=16, examples=[[3.0]], fail_fast=True)] = ()
    """The exponents of other norms, each tried with every α."""
    scope: Literal["shared", "per_layer"] = "shared"
    """``shared`` takes one policy for all layers, scored on the selected ones; ``per_layer`` one for each layer."""
    layers: LayerChoice = LayerChoice()
    """The layers that scope ``shared`` is scored on."""


class PaperExperiment(Frozen):
    """The experiment families of arXiv 2606.09927 (N1, N2, N3, T1, T2, T3), run as the job's search and training.

    N3 crosses the ``top`` best of N1 and N2. T1 trains from s = 1 at every rate. T2 trains from the ``top`` policies of
    N3 at the best rate and the next smaller one. T3 trains every layer that way.
    """

    kind: Literal["paper"] = "paper"
    """The kind of the search."""
    # 0.25 … 0.75 in 21 steps, the paper's grid.
    alpha: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=64, fail_fast=True)] = tuple(
        round(0.25 + 0.025 * i, 6) for i in range(21)
    )
    """The values of α that N1 tries."""
    # q_i = 1 − 0.05 · 10^(−2i/15) for i = 0 … 14, and q = 1, as in the paper.
    q: Annotated[tuple[Quantile, ...], Field(min_length=1, max_length=64, fail_fast=True)] = (
        *(round(1.0 - 0.05 * 10 ** (-2 * i / 15), 6) for i in range(15)),
        1.0,
    )
    """The quantiles that N2 tries."""
    top: Annotated[int, Field(strict=True, ge=1, le=16)] = 5
    """How many of the best policies of a family the next one starts from."""
    # Five rates from 5e-3 to 2e-2, log-spaced.
    learning_rates: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=16, fail_fast=True)] = tuple(
        round(5e-3 * 4 ** (i / 4), 6) for i in range(5)
    )
    """The learning rates that T1 trains at."""
    steps: Count = 800
    """The most steps of one training."""
    warmup: NonNegativeInt = 5
    """The steps in which the learning rate rises from zero."""
    patience: Count = 80
    """The steps without improvement before a training stops."""
    batch_tokens: Annotated[int, Field(strict=True, ge=16, le=1_048_576, examples=[384])] | None = None
    """The tokens of one step. Null is the paper's full batch."""
    layers: LayerChoice = LayerChoice()
    """The layers that the families are scored on."""


AnySearch = Annotated[
    Annotated[GridSearch, Tag("grid")] | Annotated[PaperExperiment, Tag("paper")],
    kind_among(GridSearch, PaperExperiment),
]
