"""Hadamard rotations for widths n = K·2^m: their construction, fast backends, and the online operation."""

from quant_engine.hadamard.backends import BACKENDS, Backend, hadamard_backend
from quant_engine.hadamard.transform import hadamard_transform, online_hadamard
from quant_engine.interface.hadamard_orders import hadamard_order
from quant_engine.online.construction import hadamard_matrix
from quant_engine.online.hadamard_cores import hadamard_cores

__all__ = [
    "BACKENDS",
    "Backend",
    "hadamard_backend",
    "hadamard_cores",
    "hadamard_matrix",
    "hadamard_order",
    "hadamard_transform",
    "online_hadamard",
]
