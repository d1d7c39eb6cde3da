"""The orthogonal matrices that rotate a model's residual stream (R1) and value heads (R2).

Shapes: D hidden size, K head size, L blocks.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability, UnsupportedPolicy
from quant_engine.hadamard import hadamard_order, online_hadamard
from quant_engine.models.sites import head_size

_TOLERANCE: Final = 1e-4
"""Largest entry of RᵀR − I that rounding errors can cause, in fp32 with a few thousand channels."""


@dataclass(frozen=True, eq=False)
class ResidualRotation:
    """Orthogonal matrices in fp32 or fp64, applied to rows from the right: h R1 and v R2.

    Attributes:
        r1_DD: of the residual stream.
        r2_LKK: of the value heads, one for each block and shared by its heads; None does not rotate them.
    """

    r1_DD: Tensor
    r2_LKK: Tensor | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both matrices."""
        digest = hashlib.sha256()
        for matrix in (self.r1_DD, self.r2_LKK):
            if matrix is not None:
                digest.update(str(tuple(matrix.shape)).encode())
                # In one type, so that a matrix has the same fingerprint in fp32 and in fp64.
                digest.update(matrix.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
        return digest.hexdigest()


def hadamard_rotation(config: Any, *, seed: int, value_heads: bool = True) -> ResidualRotation:
    """Return randomized Hadamard rotations: random signs, then the transform (QuIP#, arXiv 2402.04396, section 3).

    Args:
        config: a transformers configuration; its hidden size, head size and number of blocks are used.
        seed: of the signs; equal seeds give equal bits.
        value_heads: whether to build R2.

    Returns:
        fp64 matrices on the CPU, block-diagonal where a size has no Hadamard matrix of its full order.
    """
    generator = torch.Generator().manual_seed(seed)
    r1_DD = _signed_hadamard(config.hidden_size, generator)
    if not value_heads:
        return ResidualRotation(r1_DD)
    size = head_size(config)
    r2_KK = [_signed_hadamard(size, generator) for _ in range(config.num_hidden_layers)]
    return ResidualRotation(r1_DD, torch.stack(r2_KK))


def _signed_hadamard(size: int, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (size,), generator=generator).to(torch.float64) * 2.0 - 1.0
    return online_hadamard(torch.diag(signs), hadamard_order(size))


def check_orthogonal(name: str, matrix: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a matrix, or a stack of them, that does not have ``shape`` or is not orthogonal.

    Raises:
        UnsupportedPolicy: another shape.
        NumericalInstability: RᵀR is not the identity.
    """
    if tuple(matrix.shape) != shape:
        raise UnsupportedPolicy(
            detail=f"{name} has the shape {list(matrix.shape)}; this model's has to be {list(shape)}.",
            hint="Build the rotation from this model's configuration.",
        )
    # The check itself must not add rounding, so it is in fp64.
    r = matrix.to(torch.float64)
    identity = torch.eye(shape[-1], dtype=torch.float64, device=r.device)
    error = float((r.mT @ r - identity).abs().max())
    if not error < _TOLERANCE:  # so that NaN is refused too
        raise NumericalInstability(
            detail=f"{name} is not orthogonal: an entry of RᵀR − I is {error:.2e}.",
            hint="Lower the learning rate of the rotation, or orthogonalize the matrix before it is used.",
        )
