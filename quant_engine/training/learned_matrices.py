"""Invertible matrices as parameters of an optimizer, together with their inverses.

Shapes: [..., K, K], one matrix or N blocks of them.
"""

import math
from typing import Final, Literal

import torch
from torch import Tensor, nn

Parametrization = Literal["direct", "cayley"]
"""How a matrix is learned: its entries, or the factors U D Vᵀ of FlatQuant."""


def cayley(skew_KK: Tensor) -> Tensor:
    """(I − A/2)⁻¹ (I + A/2) with A the skew part of ``skew_KK``: orthogonal, and I for A = 0.

    In the dtype of ``skew_KK``. Differentiable. (Cayley 1846; FlatQuant, ICML 2025, uses it for its factors.)
    """
    half_KK = 0.25 * (skew_KK - skew_KK.mT)
    eye_KK = torch.eye(skew_KK.shape[-1], dtype=skew_KK.dtype, device=skew_KK.device)
    orthogonal_KK: Tensor = torch.linalg.solve(eye_KK - half_KK, eye_KK + half_KK)
    return orthogonal_KK


class LearnedMatrix(nn.Module):
    """P as its own entries: P = P₀ + mask ⊙ Δ, with Δ learned from zero.

    Args:
        start_KK: P₀, invertible.
        gradual: let entries move from the diagonal outwards as :meth:`advance` tells. AffineQuant (arXiv 2403.12544,
            equation 6) multiplies the matrix by such a mask; here it multiplies what is learned, so that a start which
            is not diagonally dominant (a Hadamard) stays invertible.
    """

    def __init__(self, start_KK: Tensor, *, gradual: bool = False) -> None:
        super().__init__()
        self._start_KK = nn.Buffer(start_KK.detach().float().clone())
        self.delta_KK = nn.Parameter(torch.zeros_like(self._start_KK))
        self._gradual = gradual
        self._mask_KK: Tensor | None = None
        self.advance(0.0)

    def advance(self, share: float) -> None:
        """Free the entries within ``share`` of the width of the diagonal; all of them at 1."""
        if not self._gradual:
            return
        size = self._start_KK.shape[-1]
        index_K = torch.arange(size, device=self._start_KK.device)
        distance_KK = (index_K[:, None] - index_K[None, :]).abs()
        self._mask_KK = (distance_KK <= math.floor(share * (size - 1))).to(self._start_KK.dtype)

    def matrix(self) -> Tensor:
        """P."""
        delta_KK = self.delta_KK if self._mask_KK is None else self.delta_KK * self._mask_KK
        return self._start_KK + delta_KK

    def inverse_transpose(self) -> Tensor:
        """P⁻ᵀ, by way of fp64; not finite where P is singular."""
        return inverse_transpose(self.matrix())


class CayleyMatrix(nn.Module):
    """P = U diag(d) Vᵀ with U = U₀ cayley(A) and V = V₀ cayley(B): the inverse needs no factorization (FlatQuant).

    ``gradual`` has no meaning here: rotations move every entry.
    """

    def __init__(self, start_KK: Tensor, *, gradual: bool = False) -> None:
        super().__init__()
        del gradual
        u_KK, d_K, vt_KK = torch.linalg.svd(start_KK.detach().double())
        self._u_KK, self._v_KK = nn.Buffer(u_KK.float()), nn.Buffer(vt_KK.mT.float())
        self.log_d_K = nn.Parameter(d_K.log().float())
        self.left_KK = nn.Parameter(torch.zeros_like(self._u_KK))
        self.right_KK = nn.Parameter(torch.zeros_like(self._u_KK))

    def advance(self, share: float) -> None:
        """Nothing: every entry is free from the start."""

    def matrix(self) -> Tensor:
        """P."""
        return self._product(self.log_d_K.exp())

    def inverse_transpose(self) -> Tensor:
        """P⁻ᵀ = U diag(1/d) Vᵀ."""
        return self._product((-self.log_d_K).exp())

    def _product(self, d_K: Tensor) -> Tensor:
        u_KK, v_KK = self._u_KK @ cayley(self.left_KK), self._v_KK @ cayley(self.right_KK)
        return (u_KK * d_K.unsqueeze(-2)) @ v_KK.mT


MATRICES: Final[dict[Parametrization, type[LearnedMatrix] | type[CayleyMatrix]]] = {
    "direct": LearnedMatrix,
    "cayley": CayleyMatrix,
}


def inverse_transpose(matrix_KK: Tensor) -> Tensor:
    """M⁻ᵀ in the dtype of M, computed in fp64; not finite, rather than an error, where M is singular."""
    inverse_KK: Tensor
    inverse_KK, info = torch.linalg.inv_ex(matrix_KK.double())
    failed = info.reshape(*info.shape, 1, 1) != 0
    return inverse_KK.mT.to(matrix_KK.dtype).masked_fill(failed, torch.nan)
