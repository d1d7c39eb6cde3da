"""The transform chosen for one site, and how it acts on activations and weights.

A = Λ⁻¹ Hᵀ with Λ = diag(s): scale, then rotate. X' = X Λ⁻¹ Hᵀ and W' = W Λ Hᵀ leave X' W'ᵀ = X Wᵀ
(arXiv 2606.09927, smooth rotation; SmoothRot, arXiv 2506.05413). Shapes: T tokens, I = D input channels, O outputs.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from quant_engine.hadamard import hadamard_transform
from quant_engine.policy import Statistic, TransformKind


@dataclass(frozen=True, kw_only=True, eq=False)
class SitePlan:
    """One site's transform.

    Attributes:
        kind: none, smooth, rotation or smooth_rotation.
        alpha, statistic: the scale policy behind ``scales_D``, or where its training started; None without scales.
        label: ``absmax``, ``quantile``, ``l2`` or ``learned``; ``none`` without scales.
        scales_D: s > 0, float32 [D], or None.
        order: of the Hadamard rotation, or None without one.
    """

    kind: TransformKind
    alpha: float | None = None
    statistic: Statistic | None = None
    label: str = "none"
    scales_D: Tensor | None = None
    order: int | None = None

    def with_scales(self, scales_D: Tensor, label: str) -> "SitePlan":
        """The same transform with other scales."""
        return replace(self, scales_D=scales_D, label=label)


def transform_activation(x_TI: Tensor, plan: SitePlan) -> Tensor:
    """X' = X Λ⁻¹ Hᵀ, in the dtype of ``x_TI``."""
    if plan.scales_D is not None:
        x_TI = x_TI / plan.scales_D.to(x_TI)
    return _rotate(x_TI, plan)


def transform_weight(w_OI: Tensor, plan: SitePlan) -> Tensor:
    """W' = W Λ Hᵀ, in the dtype of ``w_OI``."""
    if plan.scales_D is not None:
        w_OI = w_OI * plan.scales_D.to(w_OI)
    return _rotate(w_OI, plan)


def _rotate(x: Tensor, plan: SitePlan) -> Tensor:
    return x if plan.order is None else hadamard_transform(x, order=plan.order)
