"""Closed-form transforms that balance two covariances: CAT (arXiv 2603.04359) and WUSH (arXiv 2512.00956).

With Σx of the activations and Σw of the weights, both make AᵀΣxA = A⁻¹ΣwA⁻ᵀ, and differ only by an orthogonal factor:
A Aᵀ = Σw # Σx⁻¹, the matrix geometric mean. So one factorization B Bᵀ = Σw # Σx⁻¹ is used for both, in fp64.

Shapes: T tokens, I channels, N blocks of K channels.
"""

from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.hadamard import hadamard_order, hadamard_transform
from quant_engine.transforms.matrices import block_count
from quant_engine.transforms.primitives import Block, Dense, Primitive

_CHUNK_TOKENS: Final = 4096
"""How many tokens are converted to fp64 at a time."""
_DEAD: Final = 1e-8
"""A block whose variance is below this share of the largest block's variance is damped as if it had this share."""


def cat_blocks(
    sigma_x_II: Tensor,
    sigma_w_II: Tensor,
    *,
    block_size: int | None,
    damping: float = 0.01,
    alpha: float = 0.5,
    rotate: bool = True,
) -> tuple[Primitive, ...]:
    """CAT: A = M H per block, with M = (Σw # Σx⁻¹)^½ and the orthonormal Hadamard H of order K.

    Args:
        sigma_x_II, sigma_w_II: XᵀX and WᵀW, each up to a factor. A factor c on one of them scales A by a power of c,
            which does not change the result of a scale-invariant quantizer.
        block_size: K; None, or the width, for one full matrix.
        damping: added to both diagonals, as a share of each block's mean variance.
        alpha: how much of the difficulty is moved to the weights, as SmoothQuant's α: ½ is the papers' balance, 1
            whitens the activations (the weighted geometric mean with weight 1 − α; ours).
        rotate: whether H follows. If there is no H of order K, it is block-diagonal as in
            :func:`quant_engine.hadamard.hadamard_order`.

    Returns:
        One ``Block``, or one ``Dense`` for a full matrix; float32, on the device of ``sigma_x_II``.

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide the width.
        NumericalInstability: a damped covariance is not finite or not positive definite.
    """
    root_NKK = _balancing_root(sigma_x_II, sigma_w_II, block_size, damping, alpha)
    # The symmetric root of B Bᵀ is the polar factor of B, that is, WUSH without its orthogonal part. Rounding may make
    # a tiny eigenvalue negative, so it is clamped to 0.
    vectors_NKK: Tensor
    values_NK, vectors_NKK = torch.linalg.eigh(root_NKK @ root_NKK.mT)
    mean_NKK = (vectors_NKK * values_NK.clamp(min=0).sqrt()[:, None, :]) @ vectors_NKK.mT
    return _as_primitives(_times_hadamard(mean_NKK, inverse=True) if rotate else mean_NKK)


def wush_blocks(
    sigma_x_II: Tensor,
    sigma_w_II: Tensor,
    *,
    block_size: int | None,
    damping: float = 0.01,
    alpha: float = 0.5,
    rotate: bool = True,
) -> tuple[Primitive, ...]:
    """WUSH: A = L⁻ᵀ V S^½ Hᵀ per block, with Σx = L Lᵀ and LᵀΣwL = V S² Vᵀ.

    Before the rotation both transformed covariances are the diagonal S; after it, all their variances are equal.
    Σw is damped like Σx, so that A is invertible if a layer has fewer outputs than inputs.

    Arguments, result and errors are those of :func:`cat_blocks`.
    """
    root_NKK = _balancing_root(sigma_x_II, sigma_w_II, block_size, damping, alpha)
    return _as_primitives(_times_hadamard(root_NKK, inverse=False) if rotate else root_NKK)


def capped_tokens(x_TI: Tensor, ratio: float) -> Tensor:
    """``x_TI``, in which every token whose L2 norm exceeds ``ratio`` × the median norm is scaled down to that norm.

    Without the cap a few massive tokens would dominate Σx. The median is taken over tokens that are not zero. Tokens
    below the cap have the same bits as before.

    Raises:
        ValueError: ``ratio`` is not positive.
    """
    if not ratio > 0:
        raise ValueError(f"ratio is {ratio}, and a cap is positive")
    norm_T = torch.linalg.vector_norm(x_TI, dim=-1, dtype=torch.float64)
    alive = norm_T[norm_T > 0]
    if alive.numel() == 0:
        return x_TI
    factor_T: Tensor = (ratio * alive.median() / norm_T).clamp(max=1.0)
    # Half precision would round the factor itself, and leave a massive token above the cap.
    factor_T = factor_T.to(torch.promote_types(x_TI.dtype, torch.float32))
    return (x_TI * factor_T[:, None]).to(x_TI.dtype)


def covariance_of(x_TI: Tensor) -> Tensor:
    """XᵀX / T, uncentered, fp64 [I, I].

    Raises:
        ValueError: there are no tokens.
    """
    tokens, width = x_TI.shape
    if tokens == 0:
        raise ValueError("a covariance needs at least one token")
    sigma_II = torch.zeros(width, width, dtype=torch.float64, device=x_TI.device)
    for chunk_TI in torch.split(x_TI, _CHUNK_TOKENS):
        exact_TI = chunk_TI.double()
        sigma_II.addmm_(exact_TI.mT, exact_TI)
    return sigma_II / tokens


def _balancing_root(
    sigma_x_II: Tensor, sigma_w_II: Tensor, block_size: int | None, damping: float, alpha: float
) -> Tensor:
    """B = L⁻ᵀ V S^(1−α) [N, K, K]: at α = ½, B Bᵀ = L⁻ᵀ (LᵀΣwL)^½ L⁻¹ = Σw # Σx⁻¹ and BᵀΣxB = S = B⁻¹ΣwB⁻ᵀ."""
    if sigma_x_II.shape != sigma_w_II.shape:
        raise ValueError(f"sigma_x_II is {list(sigma_x_II.shape)} and sigma_w_II {list(sigma_w_II.shape)}")
    size = sigma_x_II.shape[-1] if block_size is None else block_size
    lower_NKK = _cholesky(_damped_blocks(sigma_x_II, size, damping, "activations"), "activations", damping)
    sigma_w_NKK = _damped_blocks(sigma_w_II.to(sigma_x_II.device), size, damping, "weights")
    v_NKK: Tensor
    square_NK, v_NKK = torch.linalg.eigh(lower_NKK.mT @ sigma_w_NKK @ lower_NKK)
    if not bool((square_NK > 0).all()):
        raise _not_definite("weights", damping)
    # eigh returns S². S^(1−α) of the docstring is S^½, the fourth root of S², at the papers' balance.
    power_NK = square_NK.pow((1.0 - alpha) / 2.0)
    root_NKK: Tensor = torch.linalg.solve_triangular(lower_NKK.mT, v_NKK * power_NK[:, None, :], upper=True)
    return root_NKK


def _damped_blocks(sigma_II: Tensor, size: int, damping: float, side: str) -> Tensor:
    """The diagonal blocks [N, K, K] in fp64, plus damping × the mean of each one's diagonal."""
    blocks = block_count(sigma_II.shape[-1], size)
    grid_NKNK = sigma_II.reshape(blocks, size, blocks, size)
    sigma_NKK = grid_NKNK.diagonal(dim1=0, dim2=2).permute(2, 0, 1).double()  # [K, K, N] → [N, K, K]
    if not bool(sigma_NKK.isfinite().all()):
        raise NumericalInstability(
            detail=f"The covariance of the {side} is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    mean_N = sigma_NKK.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    # Without the clamp a block of dead channels would get no damping and stay singular.
    added_N = damping * mean_N.clamp(min=_DEAD * float(mean_N.max()))
    return sigma_NKK + added_N[:, None, None] * torch.eye(size, dtype=torch.float64, device=sigma_II.device)


def _cholesky(sigma_NKK: Tensor, side: str, damping: float) -> Tensor:
    lower_NKK: Tensor
    # ``cholesky_ex`` returns a status instead of raising torch's error, so that the error can name the damping.
    lower_NKK, info_N = torch.linalg.cholesky_ex(sigma_NKK)
    if bool(info_N.any()):
        raise _not_definite(side, damping)
    return lower_NKK


def _not_definite(side: str, damping: float) -> NumericalInstability:
    return NumericalInstability(
        detail=f"The covariance of the {side}, damped by {damping}, is not positive definite.",
        hint="Raise the damping, and check that the channels are not all zero on the calibration tokens.",
    )


def _times_hadamard(matrix_NKK: Tensor, *, inverse: bool) -> Tensor:
    """M Hᵀ, or M H for the inverse."""
    order = hadamard_order(matrix_NKK.shape[-1])
    return hadamard_transform(matrix_NKK.contiguous(), order=order, inverse=inverse)


def _as_primitives(matrix_NKK: Tensor) -> tuple[Primitive, ...]:
    # Rounded to fp32 here, so that the weights get the inverse of exactly the matrix that runs online.
    matrix_NKK = matrix_NKK.float()
    return (Dense(matrix_DD=matrix_NKK[0]),) if matrix_NKK.shape[0] == 1 else (Block(blocks_NKK=matrix_NKK),)
