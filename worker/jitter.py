"""Random variation of intervals, so that workers do not all act at the same moment."""

import random
from typing import Final

_JITTER: Final = 0.25


def jittered(seconds: float) -> float:
    """Return ``seconds``, up to a quarter more or less."""
    # The value only spreads workers out; guessing it is of no use to anyone.
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 — not for security, see above
