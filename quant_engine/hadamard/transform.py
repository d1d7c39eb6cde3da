"""The orthonormal Hadamard transform along the last axis, whole or in blocks."""

from collections.abc import Callable

import torch
from torch import Tensor

from quant_engine.hadamard.backends import CUDA, KRONECKER, Backend, backend_for

_HALF = (torch.float16, torch.bfloat16)


def hadamard_transform(x: Tensor, *, order: int, inverse: bool = False) -> Tensor:
    """Return x Hᵀ along the last axis. SmoothRot (arXiv 2506.05413) rotates activations with it, and W into W Hᵀ.

    Args:
        x: floating point [..., n], any device; half precision is computed in float32 and rounded once.
        order: as :func:`hadamard_order` returns it; below n the rotation has n / order equal diagonal blocks.
        inverse: return x H instead, which is the inverse.

    Returns:
        A tensor like ``x``. It is differentiable.

    Raises:
        ValueError: ``order`` does not divide n, or no matrix of that order can be constructed.
    """
    return _blockwise(x, order, inverse, backend_for)


def online_hadamard(x: Tensor, order: int) -> Tensor:
    """Return x Hᵀ as quantized modules compute it, with a backend that depends only on the device and the dtype.

    So a checkpoint gives the same bits before and after a reload. Optional wheels for the CPU, the recording of
    gradients and :func:`hadamard_backend` do not change them.

    Raises:
        ValueError: as for :func:`hadamard_transform`.
    """
    return _blockwise(x, order, False, _online_backend)


def _online_backend(x: Tensor) -> Backend:
    return CUDA if CUDA.supports(x) else KRONECKER


def _blockwise(x: Tensor, order: int, inverse: bool, choose: Callable[[Tensor], Backend]) -> Tensor:
    n = x.shape[-1]
    if order < 1 or n % order:
        raise ValueError(f"Hadamard order {order} does not divide the width {n}")
    # Order 1 is no rotation: an odd width has no other order.
    if order == 1:
        return x
    blocks = (x.float() if x.dtype in _HALF else x).reshape(-1, order)
    return choose(blocks).apply(blocks, inverse).reshape(x.shape).to(x.dtype)
