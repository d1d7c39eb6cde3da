"""The orders of the Hadamard matrices that can be constructed, without torch.

The matrices themselves, and the sources, are in :mod:`quant_engine.hadamard.construction`.
"""

from functools import lru_cache

from quant_engine.errors import UnsupportedPolicy

MAX_CORE = 1024
"""Largest core that is used: its dense product is the slow part of the transform."""


def hadamard_order(n: int, block_size: int | None = None, *, power_of_two: bool = False) -> int:
    """Return the order of the rotation for a width of ``n`` channels.

    Args:
        n: number of channels.
        block_size: the requested order; the rotation is then block-diagonal.
        power_of_two: whether the order has to be a power of two where ``block_size`` does not say it.

    Returns:
        ``block_size`` if given; else ``n`` if a Hadamard matrix of that order can be constructed and may be used, and
        otherwise the largest power of two that divides ``n`` (1, no rotation at all, for an odd ``n``).

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide ``n``, or there is no matrix of that order.
    """
    if block_size is None:
        whole = hadamard_cores(n) is not None and not power_of_two
        return n if whole else n & -n  # n & −n is the largest power of two in n
    if n % block_size:
        raise UnsupportedPolicy(
            detail=f"transform.block_size is {block_size}, which does not divide a layer's {n} input channels.",
            hint=f"Use a divisor of {n}, or null for the order {hadamard_order(n)}.",
        )
    if hadamard_cores(block_size) is None:
        raise UnsupportedPolicy(
            detail=f"transform.block_size is {block_size}, and no Hadamard matrix of that order can be constructed.",
            hint=f"Use a power of two that divides {n}, or null for the order {hadamard_order(n)}.",
        )
    return block_size


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
