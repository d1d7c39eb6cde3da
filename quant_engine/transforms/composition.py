"""Compositions P = P₁ P₂ ⋯ P_n of primitives: X P applies the first one first, and P⁻ᵀ = P₁⁻ᵀ P₂⁻ᵀ ⋯ P_n⁻ᵀ.

The empty composition is the identity. Shapes: T tokens, O outputs, I = D channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant_engine.transforms.primitives import Diagonal, Primitive


def apply_all(primitives: Sequence[Primitive], x_TI: Tensor) -> Tensor:
    """X P, in the dtype of ``x_TI``. Differentiable."""
    for primitive in primitives:
        x_TI = primitive.apply(x_TI)
    return x_TI


def apply_online_all(primitives: Sequence[Primitive], x_TI: Tensor) -> Tensor:
    """X P as quantized modules compute it; see :meth:`Primitive.apply_online`."""
    for primitive in primitives:
        x_TI = primitive.apply_online(x_TI)
    return x_TI


def inverse_transpose_all(primitives: Sequence[Primitive], w_OI: Tensor) -> Tensor:
    """W P⁻ᵀ, in the dtype of ``w_OI``, rounded to it once.

    Raises:
        NumericalInstability: a primitive can not be inverted.
    """
    # A step with an inverse works in fp64 anyway; rounding between the steps would only add errors.
    exact_OI = w_OI.double() if len(primitives) > 1 else w_OI
    for primitive in primitives:
        exact_OI = primitive.apply_inverse_transpose(exact_OI)
    return exact_OI.to(w_OI.dtype)


def covariance_all(primitives: Sequence[Primitive], s_II: Tensor) -> Tensor:
    """Pᵀ S P, in the dtype of ``s_II``."""
    for primitive in primitives:
        s_II = primitive.covariance(s_II)
    return s_II


def dense_matrix(
    primitives: Sequence[Primitive],
    width: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """The dense P [I, I]."""
    return apply_all(primitives, torch.eye(width, dtype=dtype, device=device))


def online_cost(primitives: Sequence[Primitive], width: int) -> int:
    """Multiply-adds per token where all of them run online; pass the rest of :func:`split_fusable`."""
    return sum(primitive.cost(width) for primitive in primitives)


def merge_diagonals(primitives: Sequence[Primitive]) -> tuple[Primitive, ...]:
    """The same P with each run of adjacent diagonals as one; whatever stands alone is kept as it is."""
    merged: list[Primitive] = []
    for primitive in primitives:
        previous = merged[-1] if merged else None
        if isinstance(primitive, Diagonal) and isinstance(previous, Diagonal):
            merged[-1] = _product(previous, primitive)
        else:
            merged.append(primitive)
    return tuple(merged)


def split_fusable(primitives: Sequence[Primitive]) -> tuple[Tensor | None, tuple[Primitive, ...]]:
    """``(scales_D, rest)``: the head that fuses into the module before the site, and what has to run online.

    ``scales_D`` is the product of the leading diagonals, None where the composition begins with another primitive;
    P = diag(1 / scales_D) · rest.
    """
    merged = merge_diagonals(primitives)
    if merged and isinstance(merged[0], Diagonal):
        return merged[0].scales_D, merged[1:]
    return None, merged


def _product(first: Diagonal, second: Diagonal) -> Diagonal:
    dtype = torch.promote_types(first.scales_D.dtype, second.scales_D.dtype)
    scales_D = first.scales_D.double() * second.scales_D.to(first.scales_D.device, torch.float64)
    return Diagonal(scales_D=scales_D.to(dtype))
