"""Construct Hadamard matrices of order n = K·2^m.

The matrix of an order must never change, because the weights of exported checkpoints are rotated by it:

    H_n = C_1 ⊗ … ⊗ C_r ⊗ S_{2^m}

with S the Sylvester matrix and C_i Paley cores (R. E. A. C. Paley, *On Orthogonal Matrices*, 1933): type I of order
q + 1 for a prime power q ≡ 3 (mod 4), type II of order 2(q + 1) for q ≡ 1 (mod 4). Some orders need other families
(Williamson: 92, 172, …), which are not constructed here. A larger core replaces them where the width has enough powers
of two: 11008 = 344·32 with a core from GF(7³), although 172·64 itself is not constructed.
"""

import math

import torch
from torch import Tensor

from quant_engine.online.galois import jacobsthal_matrix
from quant_engine.online.hadamard_cores import hadamard_cores, is_field


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
    if is_field(order - 1, 3):
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
