"""Where the training of Kronecker factors starts: their sizes, and rotations of these sizes (FlatQuant, ICML 2025)."""

import math

import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_cores, hadamard_matrix
from quant_engine.transforms.matrices import random_orthogonal
from quant_engine.transforms.primitives import Kronecker


def kronecker_sizes(width: int) -> tuple[int, int]:
    """``(a, b)`` with a ≤ b and a·b = ``width``, as near to square as possible.

    Both are orders of Hadamard matrices where ``width`` has such factors above 1: 576 = 24·24, 1536 = 32·48,
    11008 = 32·344. Otherwise any two factors: 92 = 4·23. A prime is 1·``width``.

    Raises:
        ValueError: ``width`` is not positive.
    """
    if width < 1:
        raise ValueError(f"width is {width}, and has to be positive")
    pairs = [(a, width // a) for a in range(math.isqrt(width), 1, -1) if width % a == 0]
    rotations = [(a, b) for a, b in pairs if hadamard_cores(a) is not None and hadamard_cores(b) is not None]
    return (rotations or pairs or [(1, width)])[0]


def kronecker_hadamard(width: int, *, seed: int = 0) -> Kronecker:
    """H_a ⊗ H_b of :func:`kronecker_sizes`, float32, on the CPU.

    A factor of whose order no Hadamard matrix can be constructed is a random rotation, by ``seed``.
    """
    a, b = kronecker_sizes(width)
    generator = torch.Generator().manual_seed(seed)
    return Kronecker(left_AA=_rotation(a, generator).float(), right_BB=_rotation(b, generator).float())


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    return random_orthogonal(size, generator) if hadamard_cores(size) is None else hadamard_matrix(size)
