"""The order of the Hadamard rotation of a site."""

from quant_engine.errors import UnsupportedPolicy
from quant_engine.online.hadamard_cores import hadamard_cores


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
