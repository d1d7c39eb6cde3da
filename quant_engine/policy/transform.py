"""The equivalent transform of a site, and the rotation of the residual stream."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from quant_engine.policy.fields import Flag, Fraction, Frozen, NonNegativeInt, Quantile


class TransformKind(StrEnum):
    """The equivalent transforms A of Y = (X A)(W A⁻ᵀ)ᵀ that a policy can name."""

    NONE = "none"
    SMOOTH = "smooth"
    ROTATION = "rotation"
    SMOOTH_ROTATION = "smooth_rotation"
    KRONECKER = "kronecker"
    KRONECKER_ROTATION = "kronecker_rotation"
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

    @property
    def is_hadamard(self) -> bool:
        """Whether the transform rotates by a Hadamard, alone or behind a diagonal."""
        return self in (TransformKind.ROTATION, TransformKind.SMOOTH_ROTATION)


_SCALED: Final = (
    TransformKind.SMOOTH,
    TransformKind.SMOOTH_ROTATION,
    TransformKind.KRONECKER,
    TransformKind.KRONECKER_ROTATION,
    TransformKind.DUQUANT,
    TransformKind.AFFINE,
    TransformKind.SMOOTH_CAT,
)


class Statistic(Frozen):
    """The channel statistic in s = stat_X^α / stat_W^(1−α)."""

    kind: Literal["absmax", "quantile", "l2", "lp"] = "absmax"
    """The largest absolute value, a quantile of them, or a norm; ``l2`` is ``lp`` at p = 2."""
    q: Quantile = 1.0
    """The quantile of kind ``quantile``. 1 is the maximum."""
    p: Annotated[float, Field(strict=True, ge=1.0, le=64.0)] = 2.0
    """The exponent of kind ``lp``, the norm (Σ |x|^p)^(1/p)."""


class Transform(Frozen):
    """One transform of a site's input."""

    later_fields: ClassVar[frozenset[str]] = frozenset({"orders", "permutation"})

    kind: TransformKind = TransformKind.SMOOTH_ROTATION
    """``rotation`` is a Hadamard; ``kronecker`` is FlatQuant's P₁ ⊗ P₂, and ``kronecker_rotation`` is the same with
    factors that a training keeps orthogonal; ``affine`` is a learned block matrix (AffineQuant); ``duquant``, ``cat``
    and ``wush`` are the closed forms of those papers, and ``smooth_cat`` (ours) is ``cat`` after the diagonal."""
    alpha: Fraction = 0.5
    """α of the diagonal, where the kind has one. In the closed forms it is the same trade-off between activations and
    weights."""
    statistic: Statistic = Statistic()
    """The statistic of the diagonal, where the kind has one."""
    block_size: Annotated[int, Field(strict=True, ge=2, le=65536, examples=[64])] | None = None
    """The order of the Hadamard, or the width of the blocks. Null is the full width where that exists."""
    orders: Literal["any", "power_of_two"] = "any"
    """``power_of_two``: where ``block_size`` is null, the order of the Hadamard is the largest power of two in the
    width. Engines have kernels for such orders, and multiply by a stored matrix for others."""
    permutation: Literal["none", "zigzag"] = "none"
    """``zigzag`` distributes the channels of the feed-forward's inner tensor over the blocks of its Hadamard, so that
    no block gets more large channels than another. It costs nothing: it is fused into the rows of the linears before
    and the columns of the linear behind."""
    damping: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.01
    """This times the mean diagonal is added to covariances before they are inverted (``cat``, ``wush``)."""
    massive_cap: Annotated[float, Field(strict=True, ge=1.0, le=1e6, examples=[8.0])] | None = None
    """Tokens longer than this many times the median token are shortened to that length before a covariance is
    computed. Null leaves them unchanged."""


class Residual(Frozen):
    """A rotation R1 of the residual stream and R2 of every value head, fused into the weights (QuaRot, SpinQuant)."""

    kind: Literal["hadamard"] = "hadamard"
    """Randomised Hadamard matrices. Training of kind ``rotation`` starts from them."""
    heads: Flag = True
    """Whether the value heads are rotated as well (R2)."""
    seed: NonNegativeInt = 0
    """The seed of the matrices' random signs."""
