"""Compositions P = P₁ P₂ ⋯ P_n of primitives: X P applies the first one first.

The empty composition is the identity. Shapes: T tokens, I channels.
"""

from collections.abc import Sequence

from torch import Tensor

from quant_engine.transforms.primitives import Primitive


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


def online_cost(primitives: Sequence[Primitive], width: int) -> int:
    """Multiply-adds per token if all of ``primitives`` run online. A plan's diagonal is fused and does not count."""
    return sum(primitive.cost(width) for primitive in primitives)
