"""Finite fields GF(p^k) for Paley's construction: the matrix of quadratic characters of differences.

An element is a tuple of its k coefficients over GF(p), the lowest first; its index is Σ c_i p^i.
"""

import itertools

import torch
from torch import Tensor

from quant_engine.online.hadamard_cores import prime_power

Element = tuple[int, ...]


def jacobsthal_matrix(q: int) -> Tensor:
    """Return Q_ij = χ(a_i − a_j) over GF(q), int8 [q, q]; χ is +1 on nonzero squares, −1 on non-squares, 0 on zero.

    Raises:
        ValueError: q is not an odd prime power.
    """
    field = prime_power(q)
    if field is None or field[0] == 2:
        raise ValueError(f"{q} is not an odd prime power")
    p, k = field
    place_K = p ** torch.arange(k)
    character_Q = torch.zeros(q, dtype=torch.int8)
    # The nonzero elements are the powers of a generator, and the squares among them are its even powers.
    powers_NK = torch.tensor(_powers_of_a_generator(p, k))
    character_Q[powers_NK[0::2] @ place_K] = 1
    character_Q[powers_NK[1::2] @ place_K] = -1
    digits_QK = (torch.arange(q)[:, None] // place_K) % p
    # Subtraction is coefficient by coefficient, and the product turns coefficients into an index.
    difference_QQ = ((digits_QK[:, None] - digits_QK[None, :]) % p) @ place_K
    return character_Q[difference_QQ]


def _powers_of_a_generator(p: int, k: int) -> list[Element]:
    """Return all q − 1 powers of x modulo the first primitive monic polynomial of degree k over GF(p)."""
    # The polynomial is primitive exactly where x takes all q − 1 nonzero values.
    for tail in itertools.product(range(p), repeat=k):
        powers = _powers_of_x(tail, p)
        if len(powers) == p**k - 1:
            return powers
    raise AssertionError(f"GF({p}^{k}) has a primitive polynomial")


def _powers_of_x(tail: Element, p: int) -> list[Element]:
    """Return 1, x, x², … modulo x^k − Σ tail_i x^i, up to the first repetition; empty when x is not invertible."""
    # Without an inverse the powers of x need never return to 1.
    if tail[0] == 0:
        return []
    one = (1,) + (0,) * (len(tail) - 1)
    powers, current = [one], _times_x(one, tail, p)
    while current != one:
        powers.append(current)
        current = _times_x(current, tail, p)
    return powers


def _times_x(element: Element, tail: Element, p: int) -> Element:
    # x^k is replaced by Σ tail_i x^i.
    carry = element[-1]
    shifted = (0, *element[:-1])
    return tuple((low + carry * t) % p for low, t in zip(shifted, tail, strict=True))
