"""The kinds of training: channel scales, blocks and rotations."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from quant_engine.policy.fields import Count, Flag, Frozen, LearningRate, NonNegativeInt, kind_among


class Training(Frozen):
    """Training of channel scales (arXiv 2606.09927, section on trainable smooth rotation)."""

    kind: Literal["scales"] = "scales"
    """The kind of the training."""
    steps: Count = 800
    """The most steps for one layer."""
    warmup: NonNegativeInt = 5
    """The steps in which the learning rate rises from zero."""
    patience: Count = 80
    """The steps without improvement before a layer stops."""
    learning_rates: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=16, fail_fast=True)] = (0.02,)
    """The learning rates that are tried. The best one is taken."""
    scope: Literal["shared", "per_layer"] = "shared"
    """Whether the learning rate is one for all layers, or one for each."""
    start: Literal["transform", "l2", "ones"] = "transform"
    """The first scales: those of the transform, L2 scales, or ones."""
    batch_tokens: Annotated[int, Field(strict=True, ge=16, le=1_048_576)] | None = 384
    """The tokens of one step. Null is the paper's full batch."""
    max_log_ratio: Annotated[float, Field(strict=True, gt=0.0, le=100.0, examples=[2.0])] | None = None
    """The bound δ of |log s − log s₀| ≤ δ. Null is no bound."""


Learned = Literal["scales", "transform", "weight_clip", "activation_clip"]


class BlockTraining(Frozen):
    """Training of all learnable parts of a decoder block's transforms together.

    The target is the output of the full-precision block. FlatQuant (ICML 2025), OmniQuant (arXiv 2308.13137) and
    AffineQuant (arXiv 2403.12544) are configurations of it.
    """

    kind: Literal["block"] = "block"
    """The kind of the training."""
    learn: Annotated[tuple[Learned, ...], Field(min_length=1, max_length=4, fail_fast=True)] = (
        "scales",
        "transform",
        "weight_clip",
        "activation_clip",
    )
    """The diagonals; the Kronecker factors or affine blocks; clipping of weight rows and of activations."""
    steps: Count = 120
    """AdamW steps for one block."""
    batch_samples: Annotated[int, Field(strict=True, ge=1, le=1024)] = 4
    """The calibration samples of one step."""
    learning_rate: LearningRate = 5e-3
    """The first learning rate of transforms, with cosine decay to a hundredth."""
    clip_learning_rate: LearningRate = 5e-2
    """The first learning rate of clips, with cosine decay to a hundredth."""
    inputs: Literal["original", "quantized"] = "original"
    """``quantized`` trains a block on the output of the quantized blocks before it, as it will run."""
    patience: Annotated[Count, Field(examples=[5])] | None = None
    """The measurements on validation samples without improvement before a block stops. Null never stops."""
    gradual: Flag = False
    """Train the affine blocks from the diagonal outwards as the steps go on (AffineQuant's mask)."""


class RotationTraining(Frozen):
    """Training of R1 and R2 by Cayley SGD on the language-model loss of the quantized network (SpinQuant, arXiv
    2405.16406)."""

    kind: Literal["rotation"] = "rotation"
    """The kind of the training."""
    steps: Count = 20
    """The steps on the whole model."""
    batch_samples: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    """The calibration samples of one step."""
    learning_rate: LearningRate = 1.5
    """The learning rate of Cayley SGD."""


AnyTraining = Annotated[
    Annotated[Training, Tag("scales")]
    | Annotated[BlockTraining, Tag("block")]
    | Annotated[RotationTraining, Tag("rotation")],
    kind_among(Training, BlockTraining, RotationTraining),
]
