"""The times at which a refused message is sent again."""

import random
from typing import Final

_INTERVALS: Final = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between attempts, as the Standard Webhooks specification recommends: nine retries in three days."""

_LONGEST_RETRY_AFTER_SECONDS: Final = 86_400.0
_JITTER: Final = 0.2


def delay_seconds(attempts: int, *, first_seconds: float, retry_after: float) -> float:
    """Return the delay after ``attempts``, at least ``retry_after``; ``first_seconds`` scales the schedule.

    Jitter is added, so that messages that failed together do not return together.
    """
    interval = _INTERVALS[min(max(attempts, 1), len(_INTERVALS)) - 1] * first_seconds / _INTERVALS[0]
    least = max(interval, min(retry_after, _LONGEST_RETRY_AFTER_SECONDS))
    return least * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 — nobody gains from guessing it
