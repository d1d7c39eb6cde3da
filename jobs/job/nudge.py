"""The nudge: a content-free message that says "look at the jobs table". The table itself is the outbox.

The Celery adapters that send and receive it live in ``api`` and ``worker``; this room knows only the port.
"""

from typing import Final, Protocol

TASK_NAME: Final = "quantry.run_next"
QUEUE_NAME: Final = "quantry"
NUDGE_EXPIRES_SECONDS: Final = 60.0
"""A nudge nobody took is dropped: the sweeper sends a new one for every row still queued."""


class Nudger(Protocol):
    """Tells some worker that a job may be waiting. Best effort: it returns soon and never raises."""

    def nudge(self) -> None:
        """Send one nudge."""


class SilentNudger:
    """Sends nothing; for processes without a broker. Jobs then wait for the next sweep of a worker."""

    def nudge(self) -> None:
        """Do nothing."""


def redis_url(broker_url: str) -> str:
    """The broker's URL as a Redis client reads it; Celery writes a Unix socket as ``redis+socket://``."""
    return broker_url.replace("redis+socket://", "unix://", 1)
