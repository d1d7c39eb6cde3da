"""X P of every transform that a checkpoint can hold, given its tensors.

No function keeps anything between calls or branches on values, so a compiler can trace them.

Shapes: T tokens, I channels, N blocks of K channels, A·B the factorization of a Kronecker product.
"""

import math

import torch
from torch import Tensor

from quant_engine.online.construction import core_matrix, split_order, sylvester_matrix


def hadamard_factors(order: int) -> tuple[Tensor, Tensor]:
    """Return ``(left, right)`` in fp64 with H = left ⊗ right, of sizes as equal as the core allows.

    ``right`` includes the 1/√n.

    Raises:
        ValueError: no Hadamard matrix of this order can be constructed.
    """
    cores, power = split_order(order)
    core = math.prod(cores)
    # The smallest sum of the two sizes is the smallest number of multiply-adds.
    left_power = min((1 << i for i in range(power.bit_length())), key=lambda p: core * p + power // p)
    left = torch.kron(core_matrix(cores), sylvester_matrix(left_power)).to(torch.float64)
    right = sylvester_matrix(power // left_power).to(torch.float64) / math.sqrt(order)
    return left, right


def times_hadamard(x_TI: Tensor, left_AA: Tensor, right_BB: Tensor) -> Tensor:
    """Return x Hᵀ of a Hadamard matrix H = left ⊗ right, over equal blocks of A·B channels."""
    grid = x_TI.reshape(-1, left_AA.shape[0], right_BB.shape[0])  # [T · I / (A B), A, B]
    # The right factor is a Sylvester matrix and so symmetric.
    return (left_AA @ (grid @ right_BB)).reshape(x_TI.shape)


def times_blocks(x_TI: Tensor, blocks_NKK: Tensor) -> Tensor:
    """Return x P of the block-diagonal P."""
    blocks, size = blocks_NKK.shape[:2]
    split_NTK = x_TI.reshape(-1, blocks, size).transpose(0, 1)
    return (split_NTK @ blocks_NKK.to(x_TI)).transpose(0, 1).reshape(x_TI.shape)


def times_kronecker(x_TI: Tensor, left_AA: Tensor, right_BB: Tensor) -> Tensor:
    """Return x (left ⊗ right): a token, seen as a matrix [A, B], becomes leftᵀ X right."""
    grid_TAB = x_TI.reshape(-1, left_AA.shape[0], right_BB.shape[0])
    return (left_AA.to(x_TI).mT @ (grid_TAB @ right_BB.to(x_TI))).reshape(x_TI.shape)


def permuted(x_TI: Tensor, index_I: Tensor) -> Tensor:
    """Return x[:, index]."""
    return x_TI[..., index_I]


def times_matrix(x_TI: Tensor, matrix_II: Tensor) -> Tensor:
    """Return x P of a dense P."""
    return x_TI @ matrix_II.to(x_TI)
