"""The orthonormal Hadamard transform along the last axis, whole or in blocks."""

from collections.abc import Callable

import torch
from torch import Tensor

from quant_engine.hadamard.backends import CUDA, KRONECKER, Backend, backend_for

_HALF = (torch.float16, torch.bfloat16)


def hadamard_transform(x: Tensor, *, order: int, inverse: bool = False) -> Tensor:
    """x Hᵀ along the last axis: SmoothRot (arXiv 2506.05413) rotates activations with it, and W into W Hᵀ.

    Args:
        x: floating point [..., n], any device; half precision is computed in float32 and rounded once.
        order: as :func:`hadamard_order` gives it; below n the rotation is block-diagonal, with n / order equal blocks.
        inverse: x H instead, which undoes it.

    Returns:
        A tensor like ``x``. Differentiable.

    Raises:
        ValueError: ``order`` does not divide n, or no matrix of that order can be constructed.
    """
    return _blockwise(x, order, inverse, backend_for)


def online_hadamard(x: Tensor, order: int) -> Tensor:
    """x Hᵀ as quantized modules compute it: the backend depends on the device and the dtype alone.

    A checkpoint then gives the same bits before and after a reload, whichever optional wheels are installed on a CPU,
    whether or not gradients are recorded, and whatever :func:`hadamard_backend` forces.

    Raises:
        ValueError: as :func:`hadamard_transform`.
    """
    return _blockwise(x, order, False, _online_backend)


def _online_backend(x: Tensor) -> Backend:
    return CUDA if CUDA.supports(x) else KRONECKER


def _blockwise(x: Tensor, order: int, inverse: bool, choose: Callable[[Tensor], Backend]) -> Tensor:
    n = x.shape[-1]
    if order < 1 or n % order:
        raise ValueError(f"Hadamard order {order} does not divide the width {n}")
    if order == 1:
        return x
    blocks = (x.float() if x.dtype in _HALF else x).reshape(-1, order)
    return choose(blocks).apply(blocks, inverse).reshape(x.shape).to(x.dtype)
