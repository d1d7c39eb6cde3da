"""The nudge: a message without content that means "look at the jobs table". The table itself is the queue.

The Celery adapters that send and receive it are in ``api`` and ``worker``; this package has only the protocol.
"""

from typing import Final, Protocol

TASK_NAME: Final = "quantry.run_next"
QUEUE_NAME: Final = "quantry"
NUDGE_EXPIRES_SECONDS: Final = 60.0
"""A nudge that no worker took is dropped after this time; a sweep sends a new one for rows still queued."""


class Nudger(Protocol):
    """Tells a worker that a job may be waiting. It does its best: it returns soon and never raises."""

    def nudge(self) -> None:
        """Send one nudge."""


class SilentNudger:
    """Sends nothing, for processes without a broker. Jobs then wait until a worker looks by itself."""

    def nudge(self) -> None:
        """Do nothing."""


def redis_url(broker_url: str) -> str:
    """Return the broker's URL for a Redis client; Celery writes a Unix socket as ``redis+socket://``."""
    return broker_url.replace("redis+socket://", "unix://", 1)
