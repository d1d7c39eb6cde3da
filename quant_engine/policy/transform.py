"""The equivalent transform of a site, and the rotation of the residual stream."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from quant_engine.policy.fields import Flag, Fraction, Frozen, NonNegativeInt, Quantile


class TransformKind(StrEnum):
    """The equivalent transforms A of Y = (X A)(W A⁻ᵀ)ᵀ that a policy can name."""

    NONE = "none"
    SMOOTH = "smooth"
    ROTATION = "rotation"
    SMOOTH_ROTATION = "smooth_rotation"
    KRONECKER = "kronecker"
    DUQUANT = "duquant"
    CAT = "cat"
    SMOOTH_CAT = "smooth_cat"
    WUSH = "wush"
    AFFINE = "affine"

    @property
    def scales_channels(self) -> bool:
        """Whether the transform starts with a diagonal s that a search or a training can find."""
        return self in _SCALED

    @property
    def rotates(self) -> bool:
        """Whether the transform mixes channels, online, in front of the linear."""
        return self not in (TransformKind.NONE, TransformKind.SMOOTH)


_SCALED: Final = (
    TransformKind.SMOOTH,
    TransformKind.SMOOTH_ROTATION,
    TransformKind.KRONECKER,
    TransformKind.DUQUANT,
    TransformKind.AFFINE,
    TransformKind.SMOOTH_CAT,
)


class Statistic(Frozen):
    """The channel statistic in s = stat_X^α / stat_W^(1−α).

    ``q`` is for ``quantile`` (1: the maximum), ``p`` for ``lp``, the norm (Σ |x|^p)^(1/p); ``l2`` is ``lp`` at p = 2.
    """

    kind: Literal["absmax", "quantile", "l2", "lp"] = "absmax"
    q: Quantile = 1.0
    p: Annotated[float, Field(strict=True, ge=1.0, le=64.0)] = 2.0


class Transform(Frozen):
    """One transform of a site's input.

    Attributes:
        kind: ``rotation`` is a Hadamard; ``kronecker`` is FlatQuant's P₁ ⊗ P₂; ``affine`` is a learned block matrix
            (AffineQuant); ``duquant``, ``cat`` and ``wush`` are the closed forms of those papers, and ``smooth_cat``
            (ours) is ``cat`` after the diagonal.
        alpha, statistic: of the diagonal, where the kind has one; α of the closed forms is the same trade-off between
            activations and weights.
        block_size: the order of the Hadamard, or the width of the blocks; null is the full width where that exists.
        damping: this times the mean diagonal is added to covariances before they are inverted (``cat``, ``wush``).
        massive_cap: tokens longer than this many times the median token are shortened to that length before a
            covariance is computed; null leaves them unchanged.
    """

    kind: TransformKind = TransformKind.SMOOTH_ROTATION
    alpha: Fraction = 0.5
    statistic: Statistic = Statistic()
    block_size: Annotated[int, Field(strict=True, ge=2, le=65536)] | None = None
    damping: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.01
    massive_cap: Annotated[float, Field(strict=True, ge=1.0, le=1e6)] | None = None


class Residual(Frozen):
    """A rotation R1 of the residual stream and R2 of every value head, fused into the weights (QuaRot, SpinQuant).

    ``hadamard`` are randomised Hadamard matrices drawn from ``seed``; training of kind ``rotation`` starts from them.
    """

    kind: Literal["hadamard"] = "hadamard"
    heads: Flag = True
    seed: NonNegativeInt = 0
