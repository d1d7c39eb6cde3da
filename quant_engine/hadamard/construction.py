"""Construct Hadamard matrices of order n = K·2^m.

The matrix of an order must never change, because the weights of exported checkpoints are rotated by it:

    H_n = C_1 ⊗ … ⊗ C_r ⊗ S_{2^m}

with S the Sylvester matrix and C_i Paley cores (R. E. A. C. Paley, *On Orthogonal Matrices*, 1933): type I of order
q + 1 for a prime power q ≡ 3 (mod 4), type II of order 2(q + 1) for q ≡ 1 (mod 4). Some orders need other families
(Williamson: 92, 172, …), which are not constructed here. A larger core replaces them where the width has enough powers
of two: 11008 = 344·32 with a core from GF(7³), although 172·64 itself is not constructed.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.hadamard.galois import jacobsthal_matrix, prime_power

MAX_CORE = 1024
"""Largest core that is used: its dense product is the slow part of the transform."""


def hadamard_order(n: int, block_size: int | None = None) -> int:
    """Return the order of the rotation for a width of ``n`` channels.

    Args:
        n: number of channels.
        block_size: the requested order; the rotation is then block-diagonal.

    Returns:
        ``block_size`` if given; else ``n`` if a Hadamard matrix of that order can be constructed, and otherwise the
        largest power of two that divides ``n`` (1, no rotation at all, for an odd ``n``).

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide ``n``, or there is no matrix of that order.
    """
    if block_size is None:
        return n if hadamard_cores(n) is not None else n & -n  # n & −n is the largest power of two in n
    if n % block_size:
        raise UnsupportedPolicy(
            detail=f"transform.block_size is {block_size}, which does not divide a layer's {n} input channels.",
            hint=f"Use a divisor of {n}, or null for the order {hadamard_order(n)}.",
        )
    if hadamard_cores(block_size) is None:
        raise UnsupportedPolicy(
            detail=f"transform.block_size is {block_size}, and no Hadamard matrix of that order can be constructed.",
            hint=f"Use a power of two that divides {n}, or null for the order {hadamard_order(n)}.",
        )
    return block_size


@lru_cache(maxsize=256)
def hadamard_cores(n: int) -> tuple[int, ...] | None:
    """Return the orders of the Paley cores of H_n, without its Sylvester factor; None if H_n can not be constructed."""
    if n < 1:
        return None
    exponent = (n & -n).bit_length() - 1
    return _cores(n >> exponent, exponent)


def _cores(odd: int, exponent: int) -> tuple[int, ...] | None:
    """Return cores whose product is ``odd``·2^j, j ≤ ``exponent``: as few as possible, each as small as possible."""
    if odd == 1:
        return ()
    # From the largest divisor down, which gives few cores. The order must not change: it decides the matrix.
    for divisor in (odd // d for d in range(1, odd, 2) if odd % d == 0):
        # From 4 on, because the order of a Hadamard matrix above 2 is a multiple of 4.
        for j in range(2, exponent + 1):
            if not _is_paley_order(divisor << j):
                continue
            rest = _cores(odd // divisor, exponent - j)
            if rest is not None:
                return (divisor << j, *rest)
    return None


def _is_paley_order(order: int) -> bool:
    return order <= MAX_CORE and (_is_field(order - 1, 3) or _is_field(order // 2 - 1, 1))


def _is_field(q: int, residue: int) -> bool:
    return q % 4 == residue and prime_power(q) is not None


def hadamard_matrix(n: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the dense orthonormal H_n [n, n], H Hᵀ = I, which every backend equals.

    Raises:
        ValueError: no Hadamard matrix of order ``n`` can be constructed; see :func:`hadamard_order`.
    """
    cores, power = split_order(n)
    signs = torch.kron(core_matrix(cores), sylvester_matrix(power))
    return signs.to(dtype) / math.sqrt(n)


def split_order(n: int) -> tuple[tuple[int, ...], int]:
    """Return the orders of the Paley cores of H_n, and the order of its Sylvester factor.

    Raises:
        ValueError: no Hadamard matrix of order ``n`` can be constructed.
    """
    cores = hadamard_cores(n)
    if cores is None:
        raise ValueError(f"no Hadamard matrix of order {n} can be constructed")
    return cores, n // math.prod(cores)


def core_matrix(cores: tuple[int, ...]) -> Tensor:
    """Return C_1 ⊗ … ⊗ C_r as ±1, int8, a square matrix whose order is the product of ``cores``."""
    matrix = torch.ones(1, 1, dtype=torch.int8)
    for order in cores:
        matrix = torch.kron(matrix, _paley_matrix(order))
    return matrix


def sylvester_matrix(n: int) -> Tensor:
    """Return S_n for a power of two, S_2n = [[S, S], [S, −S]], as ±1, int8 [n, n]."""
    matrix = torch.ones(1, 1, dtype=torch.int8)
    two = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    while matrix.shape[0] < n:
        matrix = torch.kron(two, matrix)
    return matrix


def _paley_matrix(order: int) -> Tensor:
    # Where both types exist, type I is used; the choice is part of the fixed matrix.
    if _is_field(order - 1, 3):
        return _paley_one(order - 1)
    return _paley_two(order // 2 - 1)


def _paley_one(q: int) -> Tensor:
    """Return I + S with the skew conference matrix S = [[0, 1], [−1, Q]], q ≡ 3 (mod 4)."""
    return _conference_matrix(q, border=-1) + torch.eye(q + 1, dtype=torch.int8)


def _paley_two(q: int) -> Tensor:
    """Return S ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]] with S = [[0, 1], [1, Q]], q ≡ 1 (mod 4)."""
    off_diagonal = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    identity = torch.eye(q + 1, dtype=torch.int8)
    return torch.kron(_conference_matrix(q, border=1), off_diagonal) + torch.kron(identity, diagonal)


def _conference_matrix(q: int, *, border: int) -> Tensor:
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    matrix[0, 1:] = 1
    matrix[1:, 0] = border
    matrix[1:, 1:] = jacobsthal_matrix(q)
    return matrix
