"""Doing something every few seconds, and not at the same moment as every other worker."""

import random
from typing import Final

_JITTER: Final = 0.25


def jittered(seconds: float) -> float:
    """``seconds``, up to a quarter more or less."""
    # It only has to spread workers out; nobody gains from guessing it.
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 — not for security, see above
