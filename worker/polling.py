"""Polling for jobs: every few seconds, should no nudge get through.

The broker may be away for as long as it likes; jobs do not wait for it. Celery knows nothing of a job that was found
this way, so whatever ends the process must let it go first: see :mod:`worker.host`.
"""

import threading
from collections.abc import Callable

import structlog

from worker.jitter import jittered

logger = structlog.get_logger(__name__)


class Poller:
    """A thread of each pool process. ``poll`` runs the jobs that it finds and returns when there is no more."""

    def __init__(self, poll: Callable[[], None], *, every_seconds: float) -> None:
        self._poll = poll
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="poller", daemon=True)

    def start(self) -> None:
        """Poll from now on; returns at once."""
        self._thread.start()

    def stop(self, wait_seconds: float) -> None:
        """Poll no more, and wait for what is under way. Does nothing when it was never started."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(wait_seconds)

    def _work(self) -> None:
        while not self._stopping.wait(jittered(self._every_seconds)):
            try:
                self._poll()
            except Exception:  # this thread must outlive any one job; its lease runs out
                logger.exception("poll_failed")
