"""Invertible matrices and rotations as parameters of an optimizer, and their inverses.

Shapes: [..., K, K], one matrix or N blocks of them.
"""

import math

import torch
from torch import Tensor, nn

from quant_engine.training.cayley import cayley


class LearnedMatrix(nn.Module):
    """A matrix whose entries are learned: P = P₀ + mask ⊙ Δ, where Δ starts from zero.

    Args:
        start_KK: P₀, invertible.
        gradual: whether entries are freed from the diagonal outwards, as far as :meth:`advance` sets. AffineQuant
            (arXiv 2403.12544, equation 6) multiplies the matrix by such a mask. Here the mask multiplies Δ, so that a
            start that is not diagonally dominant (a Hadamard) stays invertible.
    """

    def __init__(self, start_KK: Tensor, *, gradual: bool = False) -> None:
        super().__init__()
        self._start_KK = nn.Buffer(start_KK.detach().float().clone())
        self.delta_KK = nn.Parameter(torch.zeros_like(self._start_KK))
        self._gradual = gradual
        self._mask_KK: Tensor | None = None
        self.advance(0.0)

    def advance(self, share: float) -> None:
        """Free the entries whose distance from the diagonal is within ``share`` of the width; at 1 all are free."""
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
        """P⁻ᵀ, computed in fp64; not finite where P is singular."""
        return inverse_transpose(self.matrix())


class LearnedRotation(nn.Module):
    """A matrix that stays a rotation of its start: P = P₀ cayley(S), where S is skew and starts from zero.

    FlatQuant (arXiv 2410.09426) parametrizes the orthogonal factors of its matrices so. The adaptive transformations of
    arXiv 2511.17809 choose between such a rotation and a free matrix.

    Args:
        start_KK: P₀, orthogonal.
    """

    def __init__(self, start_KK: Tensor) -> None:
        super().__init__()
        self._start_KK = nn.Buffer(start_KK.detach().double())
        self.turn_KK = nn.Parameter(torch.zeros(start_KK.shape, device=start_KK.device))

    def advance(self, share: float) -> None:
        """Do nothing: a rotation has no entries to free gradually."""

    def matrix(self) -> Tensor:
        """P, orthogonal up to the rounding to fp32: it is computed in fp64."""
        return (self._start_KK @ cayley(self.turn_KK.double())).float()

    def inverse_transpose(self) -> Tensor:
        """P⁻ᵀ, which is P."""
        return self.matrix()


def inverse_transpose(matrix_KK: Tensor) -> Tensor:
    """M⁻ᵀ in the dtype of M, computed in fp64; where M is singular it is NaN and no error is raised."""
    inverse_KK: Tensor
    # NaN makes the loss of the step not finite, which the training reports with a hint.
    inverse_KK, info = torch.linalg.inv_ex(matrix_KK.double())
    failed = info.reshape(*info.shape, 1, 1) != 0
    return inverse_KK.mT.to(matrix_KK.dtype).masked_fill(failed, torch.nan)
