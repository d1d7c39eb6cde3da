"""The kinds of training: channel scales, blocks and rotations."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from quant_engine.policy.fields import Count, Flag, Frozen, LearningRate, NonNegativeInt, kind_among


class Training(Frozen):
    """Training of channel scales (arXiv 2606.09927, section on trainable smooth rotation).

    ``batch_tokens`` null is the paper's full batch; ``max_log_ratio`` is the optional bound |log s − log s₀| ≤ δ.
    """

    kind: Literal["scales"] = "scales"
    steps: Count = 800
    warmup: NonNegativeInt = 5
    patience: Count = 80
    learning_rates: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=16, fail_fast=True)] = (0.02,)
    scope: Literal["shared", "per_layer"] = "shared"
    start: Literal["transform", "l2", "ones"] = "transform"
    batch_tokens: Annotated[int, Field(strict=True, ge=16, le=1_048_576)] | None = 384
    max_log_ratio: Annotated[float, Field(strict=True, gt=0.0, le=100.0)] | None = None


Learned = Literal["scales", "transform", "weight_clip", "activation_clip"]


class BlockTraining(Frozen):
    """Training of all learnable parts of a decoder block's transforms together.

    The target is the output of the full-precision block. FlatQuant (ICML 2025), OmniQuant (arXiv 2308.13137) and
    AffineQuant (arXiv 2403.12544) are configurations of it.

    Attributes:
        learn: the diagonals; the Kronecker factors or affine blocks; clipping of weight rows and of activations.
        steps, batch_samples: AdamW steps, and calibration samples in each.
        learning_rate, clip_learning_rate: with cosine decay to a hundredth.
        inputs: ``quantized`` trains a block on the output of the quantized blocks before it, as it will run.
        patience: measurements on validation samples without improvement before a block stops; null never stops.
        gradual: train the affine blocks from the diagonal outwards as the steps go on (AffineQuant's mask).
    """

    kind: Literal["block"] = "block"
    learn: Annotated[tuple[Learned, ...], Field(min_length=1, max_length=4, fail_fast=True)] = (
        "scales",
        "transform",
        "weight_clip",
        "activation_clip",
    )
    steps: Count = 120
    batch_samples: Annotated[int, Field(strict=True, ge=1, le=1024)] = 4
    learning_rate: LearningRate = 5e-3
    clip_learning_rate: LearningRate = 5e-2
    inputs: Literal["original", "quantized"] = "original"
    patience: Count | None = None
    gradual: Flag = False


class RotationTraining(Frozen):
    """Training of R1 and R2 by Cayley SGD on the language-model loss of the quantized network (SpinQuant, arXiv
    2405.16406)."""

    kind: Literal["rotation"] = "rotation"
    steps: Count = 20
    batch_samples: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    learning_rate: LearningRate = 1.5


AnyTraining = Annotated[
    Annotated[Training, Tag("scales")]
    | Annotated[BlockTraining, Tag("block")]
    | Annotated[RotationTraining, Tag("rotation")],
    kind_among(Training, BlockTraining, RotationTraining),
]
