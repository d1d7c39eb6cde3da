"""Tuning: training of what is still continuous after the weights are rounded."""

from typing import Annotated, Literal

from pydantic import Field

from quant_engine.policy.fields import Count, Frozen, LearningRate, NonNegativeInt

Tuned = Literal["scales", "norms"]


class Tuning(Frozen):
    """Training of the rounded model's scales and norms on the predictions of the original model.

    The codes of the weights stay. Learned scales of rounded weights are those of EfficientQAT (arXiv 2407.11062),
    learned norms those of norm tweaking (arXiv 2309.02784). It costs nothing at inference.
    """

    kind: Literal["predictions"] = "predictions"
    """The loss: the divergence of the quantized model's predictions from the original's."""
    learn: Annotated[tuple[Tuned, ...], Field(min_length=1, max_length=2, fail_fast=True)] = ("scales", "norms")
    """The scales of the weights, and the weights of the blocks' norms. The scales of mxfp4 are powers of two, and
    stay."""
    steps: Count = 60
    """AdamW steps on the whole model."""
    warmup: NonNegativeInt = 5
    """The steps in which the learning rate rises from zero."""
    batch_samples: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    """The calibration samples of one step."""
    learning_rate: LearningRate = 5e-3
    """The first learning rate of the factors of scales and norms, with cosine decay to a hundredth."""
