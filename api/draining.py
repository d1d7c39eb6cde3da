"""Stopping the API without failing a request.

On SIGTERM, ``/readyz`` answers 503 at once. The API still accepts requests for ``QUANTRY_UNREADY_SECONDS``, so that a
load balancer sees the 503 and sends later requests elsewhere. After that, uvicorn closes its port and lets current
requests finish within its own grace period. Streams end with a message that gives the time after which to reconnect.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import structlog

Handler = Callable[[int, FrameType | None], Any]

log = structlog.get_logger(__name__)


class Draining:
    """The shutdown of one application. ``begun`` is true once this process is about to stop."""

    def __init__(self, unready_seconds: float) -> None:
        self._unready_seconds = unready_seconds
        self._server_handler: Handler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.begun = False

    @property
    def should_exit(self) -> bool:
        """Whether the server itself is stopping. Streams read it through the handler of SIGTERM (sse-starlette)."""
        return bool(getattr(getattr(self._server_handler, "__self__", None), "should_exit", False))

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Handle SIGTERM before the server does, for the time of the block. Call it in the event loop's thread.

        It does nothing where the server handles no signals, as in a thread or with a test client.
        """
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        if not callable(before):
            yield
            return
        self._server_handler, self._loop = before, asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, self.handle)
        try:
            yield
        finally:
            self.begun = True
            signal.signal(signal.SIGTERM, before)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal. A second signal, or ``unready_seconds`` of 0, stops the server at once."""
        first, self.begun = not self.begun, True
        if first and self._unready_seconds > 0 and self._loop is not None:
            # A signal handler can run between any two instructions, so the loop itself sets the timer.
            self._loop.call_soon_threadsafe(self._stop_later, number)
        else:
            self._stop(number, frame)

    def _stop_later(self, number: int) -> None:
        log.info("draining_began", seconds=self._unready_seconds)
        asyncio.get_running_loop().call_later(self._unready_seconds, self._stop, number, None)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._server_handler is not None:
            self._server_handler(number, frame)
