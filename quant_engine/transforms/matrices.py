"""Functions shared by primitives and their builders: blocks of channels, seeded rotations, and checked inverses.

Shapes: D channels, O outputs, K channels of a block.
"""

from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability, UnsupportedPolicy

_INVERSE_WITHIN: Final = 1e-6
"""The largest relative error of W' Pᵀ against W, hence of a layer's unquantized output, that an inverse may cause."""


def block_count(width: int, block_size: int) -> int:
    """The number of blocks of ``block_size`` channels in ``width``.

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide ``width``.
    """
    if block_size < 1 or width % block_size:
        # The hint names the largest power of two that divides the width.
        raise UnsupportedPolicy(
            detail=f"transform.block_size is {block_size}, which does not divide a layer's {width} input channels.",
            hint=f"Use a divisor of {width}, {width & -width} for example.",
        )
    return width // block_size


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix [size, size], fp64, uniform over the group (F. Mezzadri, arXiv math-ph/0609050).

    It is drawn on the device of ``generator``. Only a generator on the CPU gives bits that no accelerator changes.
    """
    gauss_KK = torch.randn(size, size, generator=generator, dtype=torch.float64, device=generator.device)
    q_KK: Tensor
    q_KK, r_KK = torch.linalg.qr(gauss_KK)
    # The signs of QR depend on the library. Those of the diagonal of R remove this and make the draw uniform.
    return q_KK * torch.where(r_KK.diagonal() < 0, -1.0, 1.0)


def times_inverse_transpose(w_OK: Tensor, matrix_KK: Tensor) -> Tensor:
    """W P⁻ᵀ = (P⁻¹ Wᵀ)ᵀ, solved in fp64, in the dtype of ``w_OK``. Both arguments may be batched.

    Raises:
        NumericalInstability: P is singular or not finite, or W' Pᵀ misses W by more than 1e-6.
    """
    matrix_KK, w_KO = matrix_KK.to(w_OK.device, torch.float64), w_OK.double().mT
    if not bool(matrix_KK.isfinite().all()):
        raise not_invertible("its matrix is not finite")
    solved_KO: Tensor
    solved_KO, info = torch.linalg.solve_ex(matrix_KK, w_KO)
    # Rounding can make a singular matrix look regular. The factorization then succeeds, but W' Pᵀ misses W.
    missed = torch.linalg.vector_norm((matrix_KK @ solved_KO - w_KO).detach(), dim=(-2, -1))
    size = torch.linalg.vector_norm(w_KO.detach(), dim=(-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    worst = float((missed / size).max())
    if bool(info.any()) or not worst < _INVERSE_WITHIN:  # written so that NaN fails too
        raise not_invertible(f"its matrix is singular, or the weight it acts on is not finite (residual {worst:.1e})")
    return solved_KO.mT.to(w_OK.dtype)


def not_invertible(reason: str) -> NumericalInstability:
    """The error for a matrix without a usable inverse."""
    return NumericalInstability(
        detail=f"A transform can not be inverted: {reason}.",
        hint="Raise the damping of a closed-form transform, lower the rate of a learned one, or choose a rotation.",
    )
