"""The start of the training of Kronecker factors: their sizes, and rotations of these sizes (FlatQuant, ICML 2025)."""

import math

import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_cores, hadamard_matrix
from quant_engine.transforms.matrices import random_orthogonal
from quant_engine.transforms.primitives import Kronecker


def kronecker_sizes(width: int) -> tuple[int, int]:
    """Return ``(a, b)`` with a ≤ b and a·b = ``width``, as equal as possible.

    Both are orders of Hadamard matrices if ``width`` has such factors above 1: 576 = 24·24, 1536 = 32·48,
    11008 = 32·344. Otherwise they are any two factors: 92 = 4·23. A prime is 1·``width``.

    Raises:
        ValueError: ``width`` is not positive.
    """
    if width < 1:
        raise ValueError(f"width is {width}, and has to be positive")
    # From the square root downwards, so that the first pair is the most equal one; the cost is D (a + b).
    pairs = [(a, width // a) for a in range(math.isqrt(width), 1, -1) if width % a == 0]
    rotations = [(a, b) for a, b in pairs if hadamard_cores(a) is not None and hadamard_cores(b) is not None]
    return (rotations or pairs or [(1, width)])[0]


def kronecker_hadamard(width: int, *, seed: int = 0) -> Kronecker:
    """H_a ⊗ H_b with the sizes of :func:`kronecker_sizes`, float32, on the CPU.

    If no Hadamard matrix of a factor's order can be constructed, that factor is a random rotation drawn from ``seed``.
    """
    a, b = kronecker_sizes(width)
    generator = torch.Generator().manual_seed(seed)
    return Kronecker(left_AA=_rotation(a, generator).float(), right_BB=_rotation(b, generator).float())


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    return random_orthogonal(size, generator) if hadamard_cores(size) is None else hadamard_matrix(size)
