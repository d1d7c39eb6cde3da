"""How the API stops without failing a request.

On SIGTERM readiness turns to 503 at once. For ``QUANTRY_UNREADY_SECONDS`` requests are still taken, so that whoever
balances load looks and sends the next ones elsewhere; then uvicorn closes its port, lets requests in flight finish
within its own grace, and streams end with a word on when to come back.
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
    """One per application. ``begun``: this process is about to stop."""

    def __init__(self, unready_seconds: float) -> None:
        self._unready_seconds = unready_seconds
        self._server_handler: Handler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.begun = False

    @property
    def should_exit(self) -> bool:
        """Whether the server itself is stopping: where streams look, through the handler of SIGTERM (sse-starlette)."""
        return bool(getattr(getattr(self._server_handler, "__self__", None), "should_exit", False))

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Within, SIGTERM comes here first, then to the server. For the event loop's thread.

        Does nothing where the server handles no signals, as in a thread or under a test's client.
        """
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
        """The handler: the second signal, or one without time to be unready, stops the server now."""
        first, self.begun = not self.begun, True
        if first and self._unready_seconds > 0 and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_later, number)
        else:
            self._stop(number, frame)

    def _stop_later(self, number: int) -> None:
        log.info("draining_began", seconds=self._unready_seconds)
        asyncio.get_running_loop().call_later(self._unready_seconds, self._stop, number, None)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._server_handler is not None:
            self._server_handler(number, frame)
