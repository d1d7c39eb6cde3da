"""Polling for jobs every few seconds, so that jobs run while the broker is down.

Celery does not know a job that was found by polling. So the process must hand it back itself before it ends: see
:mod:`worker.host`.
"""

import threading
from collections.abc import Callable

import structlog

from worker.jitter import jittered

logger = structlog.get_logger(__name__)


class Poller:
    """A thread of each pool process. ``poll`` runs the jobs that it finds, and returns when there is none left."""

    def __init__(self, poll: Callable[[], None], *, every_seconds: float) -> None:
        self._poll = poll
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="poller", daemon=True)

    def start(self) -> None:
        """Start to poll; return at once."""
        self._thread.start()

    def stop(self, wait_seconds: float) -> None:
        """Stop polling, and wait up to ``wait_seconds`` for a running job. Do nothing if it was never started."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(wait_seconds)

    def _work(self) -> None:
        while not self._stopping.wait(jittered(self._every_seconds)):
            try:
                self._poll()
            except Exception:  # one bad job must not end this thread; the lease of that job runs out
                logger.exception("poll_failed")
