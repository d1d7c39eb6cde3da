"""The Paley cores of the Hadamard matrices that can be constructed, without torch.

The matrices themselves, and the sources, are in :mod:`quant_engine.online.construction`.
"""

from functools import lru_cache

MAX_CORE = 1024
"""Largest core that is used: its dense product is the slow part of the transform."""


@lru_cache(maxsize=256)
def hadamard_cores(n: int) -> tuple[int, ...] | None:
    """Return the orders of the Paley cores of H_n, without its Sylvester factor; None if H_n can not be constructed."""
    if n < 1:
        return None
    exponent = (n & -n).bit_length() - 1
    return _cores(n >> exponent, exponent)


def _cores(odd: int, exponent: int) -> tuple[int, ...] | None:
    """Return cores whose product is ``odd``·2^j, j ≤ ``exponent``: as few as possible, each as small as possible."""
    if odd == 1:
        return ()
    # From the largest divisor down, which gives few cores. The order must not change: it decides the matrix.
    for divisor in (odd // d for d in range(1, odd, 2) if odd % d == 0):
        # From 4 on, because the order of a Hadamard matrix above 2 is a multiple of 4.
        for j in range(2, exponent + 1):
            if not _is_paley_order(divisor << j):
                continue
            rest = _cores(odd // divisor, exponent - j)
            if rest is not None:
                return (divisor << j, *rest)
    return None


def _is_paley_order(order: int) -> bool:
    return order <= MAX_CORE and (is_field(order - 1, 3) or is_field(order // 2 - 1, 1))


def is_field(q: int, residue: int) -> bool:
    """Return whether q ≡ ``residue`` (mod 4) is the order of a finite field."""
    return q % 4 == residue and prime_power(q) is not None


def prime_power(q: int) -> tuple[int, int] | None:
    """Return ``(p, k)`` with q = p^k and p prime, or None."""
    if q < 2:
        return None
    # The smallest divisor above 1 is prime; q itself is, where there is none up to its root.
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k, rest = 0, q
    while rest % p == 0:
        rest //= p
        k += 1
    return (p, k) if rest == 1 else None
