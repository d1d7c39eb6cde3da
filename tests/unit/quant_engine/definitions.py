"""Definitions that the engine's transforms are tested against: dense matrices, and statistics of whole tensors.

Shapes: T tokens, O outputs, I = D channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant_engine.transforms import ChannelStatistics, Hadamard, Primitive, SitePlan


def matrix_of(primitive: Primitive, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The dense P [I, I]."""
    return primitive.apply(torch.eye(width, dtype=dtype))


def dense_matrix(primitives: Sequence[Primitive], width: int) -> Tensor:
    """P = P₁ P₂ ⋯ P_n [I, I], fp64; the identity where there are none."""
    product_II = torch.eye(width, dtype=torch.float64)
    for primitive in primitives:
        product_II = product_II @ matrix_of(primitive, width)
    return product_II


def inverse_transpose_all(primitives: Sequence[Primitive], w_OI: Tensor) -> Tensor:
    """W P⁻ᵀ = W P₁⁻ᵀ ⋯ P_n⁻ᵀ, in the dtype of ``w_OI``."""
    exact_OI = w_OI.double()
    for primitive in primitives:
        exact_OI = primitive.apply_inverse_transpose(exact_OI)
    return exact_OI.to(w_OI.dtype)


def is_orthogonal(matrix_II: Tensor) -> bool:
    """Whether P Pᵀ = I to 1e-5; P may be stored in float32."""
    identity_II = torch.eye(matrix_II.shape[-1], dtype=torch.float64)
    return bool((matrix_II.double() @ matrix_II.double().mT - identity_II).abs().le(1e-5).all())


def order_of(plan: SitePlan) -> int | None:
    """The order of the Hadamard, where that is all there is online."""
    alone = plan.online[0] if len(plan.online) == 1 else None
    return alone.order if isinstance(alone, Hadamard) else None


def channel_statistics(x_TD: Tensor, quantiles: Sequence[float] = (), norms: Sequence[float] = ()) -> ChannelStatistics:
    """Exact statistics of tokens that fit into memory."""
    return ChannelStatistics(
        absmax_D=x_TD.abs().amax(dim=0).float(),
        l2_D=torch.linalg.vector_norm(x_TD, dim=0, dtype=torch.float64).float(),
        quantiles={q: abs_quantile(x_TD, q).float() for q in quantiles},
        norms={p: torch.linalg.vector_norm(x_TD, ord=p, dim=0, dtype=torch.float64).float() for p in norms},
        tokens=x_TD.shape[0],
    )


def abs_quantile(x_TD: Tensor, q: float) -> Tensor:
    """Exact Q_q(abs(X_j)) [D], from the few largest values of each channel; ``q`` in [0, 1].

    Linear interpolation at position q (T − 1), as numpy and torch define it by default.
    """
    tokens = x_TD.shape[0]
    position = q * (tokens - 1)
    below = int(position)
    largest_KD = x_TD.abs().topk(tokens - below, dim=0).values
    low_D, high_D = largest_KD[-1], largest_KD[-2] if tokens - below > 1 else largest_KD[-1]
    return torch.lerp(low_D, high_D, position - below)
