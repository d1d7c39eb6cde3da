"""The transform chosen for one site, and how it acts on activations and weights.

A = Λ⁻¹ Π P with Λ = diag(s). The diagonal Λ⁻¹ and the permutation Π are fused into the modules that produce the site. P
is computed online before the linears. X' = X A and W' = W A⁻ᵀ give X' W'ᵀ = X Wᵀ. With a Hadamard P = Hᵀ and no Π this
is smooth rotation (arXiv 2606.09927; SmoothRot, arXiv 2506.05413). Shapes: T tokens, I = D input channels, O outputs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant_engine.policy import ActivationQuantization, Statistic, TransformKind
from quant_engine.transforms.primitives import Primitive


@dataclass(frozen=True, kw_only=True, eq=False)
class SitePlan:
    """One site's transform, and the clipping that was found with it.

    Attributes:
        kind: the transform's kind in a policy.
        alpha, statistic: the scale policy that gave ``scales_D``, or from which its training started; None without
            scales.
        label: the statistic's kind, or ``learned``; ``none`` without scales.
        scales_D: s > 0, float32 [D], or None.
        permutation_D: the channel, int64 [D], that each position takes after the diagonal, or None.
        online: the primitives that follow the diagonal, in order.
        clip_ratio: of the activations, where it was searched or learned; None means the policy's.
        input_peak: the largest absolute value that X A is expected to have, where the grid's scale is static (NVFP4).
        weight_clip_OG: learned clip ratios of the weight scales of the site's linears, in their order, G to a row; or
            None.
    """

    kind: TransformKind
    alpha: float | None = None
    statistic: Statistic | None = None
    label: str = "none"
    scales_D: Tensor | None = None
    permutation_D: Tensor | None = None
    online: tuple[Primitive, ...] = ()
    clip_ratio: float | None = None
    input_peak: float | None = None
    weight_clip_OG: Tensor | None = None

    def with_scales(self, scales_D: Tensor, label: str) -> "SitePlan":
        """The same transform with other scales."""
        return replace(self, scales_D=scales_D, label=label)

    def to(self, device: torch.device) -> "SitePlan":
        """The same plan with its tensors on ``device``."""
        return replace(
            self,
            scales_D=None if self.scales_D is None else self.scales_D.to(device),
            permutation_D=None if self.permutation_D is None else self.permutation_D.to(device),
            online=tuple(each.to(device) for each in self.online),
            weight_clip_OG=None if self.weight_clip_OG is None else self.weight_clip_OG.to(device),
        )

    def clipped(self, activations: ActivationQuantization) -> ActivationQuantization:
        """``activations`` with the clip ratio of this plan."""
        return activations.model_copy(update={"clip_ratio": self.clip_of(activations)})

    def clip_of(self, activations: ActivationQuantization) -> float:
        """The clip ratio of the activations; 1 where they are not rounded to integers."""
        if not activations.format.is_integer:
            return 1.0
        return activations.clip_ratio if self.clip_ratio is None else self.clip_ratio


def transform_activation(x_TI: Tensor, plan: SitePlan) -> Tensor:
    """X' = X A, in the dtype of ``x_TI``."""
    # A = Λ⁻¹ P: X is divided by the scales first. W is multiplied by them first (below), because A⁻ᵀ = Λ P⁻ᵀ.
    if plan.scales_D is not None:
        x_TI = x_TI / plan.scales_D.to(x_TI)
    if plan.permutation_D is not None:
        x_TI = x_TI[..., plan.permutation_D]
    for primitive in plan.online:
        x_TI = primitive.apply(x_TI)
    return x_TI


def transform_weight(w_OI: Tensor, plan: SitePlan) -> Tensor:
    """W' = W A⁻ᵀ, in the dtype of ``w_OI``."""
    if plan.scales_D is not None:
        w_OI = w_OI * plan.scales_D.to(w_OI)
    if plan.permutation_D is not None:
        w_OI = w_OI[..., plan.permutation_D]  # Π is orthogonal: Π⁻ᵀ = Π
    for primitive in plan.online:
        w_OI = primitive.apply_inverse_transpose(w_OI)
    return w_OI
