"""Backends that compute x Hᵀ, all equal to the dense reference of :mod:`quant_engine.online.construction`.

kronecker   torch matrix products with two near-square factors; any device, differentiable, deterministic
fht-cpu     the optional wheel's in-place vectorized butterfly; CPU, outside autograd
cuda        the optional ``fast-hadamard-transform`` kernels; CUDA, differentiable

Shapes: N rows, B = order = C·P with a Paley core of order C and a Sylvester matrix of order P = 2^m.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from quant_engine.online.construction import core_matrix, split_order
from quant_engine.online.transforms import hadamard_factors, times_hadamard

try:
    from fht_cpu import fht
except ImportError:
    fht = None
try:
    from fast_hadamard_transform import hadamard_transform as cuda_fht
except ImportError:
    cuda_fht = None

_MAX_CUDA_ORDER = 32768
"""Largest Sylvester factor that the CUDA kernels take."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A way to compute the transform.

    ``apply(x_NB, inverse)`` returns x Hᵀ, or x H for the inverse, orthonormal, where ``supports(x_NB)`` is true.
    """

    name: str
    supports: Callable[[Tensor], bool]
    apply: Callable[[Tensor, bool], Tensor]


@lru_cache(maxsize=64)
def _kronecker_factors(order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # The first call may come from inference mode. Autograd could then never save the cached tensors.
    with torch.inference_mode(False):
        left, right = hadamard_factors(order)
        return left.to(device, dtype), right.to(device, dtype)


def _apply_kronecker(x_NB: Tensor, inverse: bool) -> Tensor:
    left, right = _kronecker_factors(x_NB.shape[-1], x_NB.dtype, x_NB.device)
    # Only the left factor differs from its transpose.
    return times_hadamard(x_NB, left.T if inverse else left, right)


@lru_cache(maxsize=64)
def _core(cores: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # cached, as in _kronecker_factors
        return core_matrix(cores).to(device, dtype)


def _apply_core_and_butterfly(x_NB: Tensor, inverse: bool, butterfly: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Compute C ⊗ S_P as a butterfly along the inner axis P and a small dense product along the outer axis C."""
    cores, power = split_order(x_NB.shape[-1])
    rows = butterfly(x_NB.reshape(-1, power), 1.0 / math.sqrt(x_NB.shape[-1]))
    if not cores:
        return rows.reshape(x_NB.shape)
    matrix = _core(cores, x_NB.dtype, x_NB.device)
    return ((matrix.T if inverse else matrix) @ rows.reshape(-1, matrix.shape[0], power)).reshape(x_NB.shape)


def _fht_butterfly(x_RP: Tensor, scale: float) -> Tensor:
    scaled = x_RP * scale  # a new contiguous tensor, because the transform overwrites its input
    fht(scaled.numpy(), num_threads=torch.get_num_threads())
    return scaled


def _supports_fht(x: Tensor) -> bool:
    if fht is None or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.numel() == 0:
        return False
    # The wheel works on the memory directly, so autograd would not record it.
    return not (torch.is_grad_enabled() and x.requires_grad)


def _cuda_butterfly(x_RP: Tensor, scale: float) -> Tensor:
    rotated: Tensor = cuda_fht(x_RP, scale)
    return rotated


def _supports_cuda(x: Tensor) -> bool:
    if cuda_fht is None or not x.is_cuda or x.dtype is not torch.float32:
        return False
    return split_order(x.shape[-1])[1] <= _MAX_CUDA_ORDER


KRONECKER = Backend(name="kronecker", supports=lambda x: x.is_floating_point(), apply=_apply_kronecker)
FHT_CPU = Backend(
    name="fht-cpu",
    supports=_supports_fht,
    apply=lambda x, inverse: _apply_core_and_butterfly(x, inverse, _fht_butterfly),
)
CUDA = Backend(
    name="cuda",
    supports=_supports_cuda,
    apply=lambda x, inverse: _apply_core_and_butterfly(x, inverse, _cuda_butterfly),
)

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CUDA, FHT_CPU, KRONECKER)}
"""The backends by name, the preferred one first; ``kronecker`` supports everything that the others do not."""

# A context variable and not a global, so that one thread does not force the backend of another.
_forced: ContextVar[Backend | None] = ContextVar("hadamard_backend", default=None)


@contextmanager
def hadamard_backend(name: str) -> Iterator[None]:
    """Use one backend for every :func:`hadamard_transform` inside the block.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"no Hadamard backend {name!r}; there are {', '.join(BACKENDS)}")
    token = _forced.set(BACKENDS[name])
    try:
        yield
    finally:
        _forced.reset(token)


def backend_for(x: Tensor) -> Backend:
    """Return the forced backend, or else the first that supports ``x``.

    Raises:
        ValueError: the forced backend, or every backend, does not support ``x``.
    """
    forced = _forced.get()
    for backend in BACKENDS.values() if forced is None else (forced,):
        if backend.supports(x):
            return backend
    name = "any" if forced is None else forced.name
    raise ValueError(
        f"Hadamard backend {name!r} can not take {x.dtype} on {x.device} (requires_grad={x.requires_grad})"
    )
