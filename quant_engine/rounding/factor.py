"""Factors of a damped Hessian, in double precision.

Shapes: I input channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.policy import GptqSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class GptqFactor:
    """The factors of a Hessian that GPTQ uses; computed once for all the weights that read the same input.

    Attributes:
        inverse_root_II: upper triangular U with (H + λI)⁻¹ = Uᵀ U, rows and columns in the order of rounding; in the
            dtype of the Hessian, at least float32.
        order: the columns in the order of rounding; None for their original order.
        importance_I: 1 / U_jj², relative to the largest: the cost of a unit of squared error in column j after the
            later columns have compensated what they can; in the original order of the columns.
        block_size: number of columns between two updates of all later columns.
    """

    inverse_root_II: Tensor
    order: Tensor | None
    importance_I: Tensor
    block_size: int


def factorize(hessian_II: Tensor, settings: GptqSettings) -> GptqFactor:
    """Compute U of (H + λI)⁻¹ = Uᵀ U, λ = damping × mean diagonal (GPTQ, arXiv 2210.17323, section 3.3).

    With act-order the columns are rounded in the order of falling diagonal. A channel that was never active (a zero on
    the diagonal) is not coupled to others, so it is rounded to nearest.

    Args:
        hessian_II: H = Xᵀ X of the transformed input, times any positive factor.

    Raises:
        NumericalInstability: H is not finite, or not positive definite once damped.
    """
    damped_II = damped_hessian(hessian_II, settings.damping)
    # Stable, so that equal entries stay in their order on every machine.
    order = torch.argsort(hessian_II.diagonal(), descending=True, stable=True) if settings.act_order else None
    if order is not None:
        damped_II = damped_II[order][:, order]
    # H = V Vᵀ with V upper triangular, from the Cholesky factor of H with reversed rows and columns; then U = V⁻¹.
    # So no dense inverse is computed.
    upper_II = cholesky(damped_II.flip(0, 1)).flip(0, 1)
    identity_II = torch.eye(upper_II.shape[0], dtype=upper_II.dtype, device=upper_II.device)
    inverse_root_II = torch.linalg.solve_triangular(upper_II, identity_II, upper=True)
    cost_I = inverse_root_II.diagonal().pow(-2)
    importance_I = torch.empty_like(cost_I)
    importance_I[slice(None) if order is None else order] = cost_I / cost_I.max()
    return GptqFactor(
        inverse_root_II=inverse_root_II.to(torch.promote_types(hessian_II.dtype, torch.float32)),
        order=order,
        importance_I=importance_I,
        block_size=settings.block_size,
    )


def damped_hessian(hessian_II: Tensor, damping: float) -> Tensor:
    """Return H + λI in float64, λ = damping × mean diagonal, or 1 where H is zero.

    Raises:
        NumericalInstability: H is not finite.
    """
    damped_II = hessian_II.to(torch.float64, copy=True)  # a copy, because the diagonal is changed in place
    level = float(damped_II.diagonal().mean())
    if not bool(torch.isfinite(damped_II).all()):
        raise NumericalInstability(
            detail="The Hessian of a layer's input is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    damped_II.diagonal().add_(damping * level if level > 0.0 else 1.0)
    return damped_II


def cholesky(matrix_II: Tensor) -> Tensor:
    """Return the lower triangular L with L Lᵀ equal to the matrix.

    Raises:
        NumericalInstability: it is not positive definite.
    """
    lower_II, info = torch.linalg.cholesky_ex(matrix_II)
    if int(info) != 0:
        raise NumericalInstability(
            detail=f"The damped Hessian of a layer's {matrix_II.shape[0]} input channels is not positive definite.",
            hint="Raise weights.gptq.damping (0.01 is usual), or calibrate on more tokens.",
        )
    found: Tensor = lower_II
    return found
