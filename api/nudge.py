"""Nudges through Celery. A separate thread sends them, so that a request never waits for the broker."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import structlog
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from jobs.job.nudge import NUDGE_EXPIRES_SECONDS, QUEUE_NAME, TASK_NAME

_MAX_WAITING: Final = 1000
_DRAIN_SECONDS: Final = 1.0
_SOCKET_SECONDS: Final = 0.5

# One short attempt for each nudge: when it fails, the sweep of a worker sends the nudge again.
_TRANSPORT_OPTIONS: Final[dict[str, Any]] = {
    "max_retries": 0,
    "socket_connect_timeout": _SOCKET_SECONDS,
    "socket_timeout": _SOCKET_SECONDS,
}

log = structlog.get_logger(__name__)


class CeleryNudger:
    """The :class:`jobs.job.nudge.Nudger` of the API, as a context manager.

    When the block ends, it sends waiting nudges for about a second. ``on_failure`` is called for each nudge that was
    not sent. The log has only the kind of an error: the text may contain the broker's password.
    """

    def __init__(self, broker_url: str, on_failure: Callable[[], None] = lambda: None) -> None:
        self._on_failure = on_failure
        # Not as the current app, which is a global of the process.
        self._celery = Celery("quantry-api", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            broker_transport_options=_TRANSPORT_OPTIONS,
            broker_connection_timeout=_SOCKET_SECONDS,
            task_serializer="json",
            task_ignore_result=True,
        )
        self._waiting: queue.Queue[bool] = queue.Queue(maxsize=_MAX_WAITING)
        self._dropping = False
        self._thread = threading.Thread(target=self._send_until_stopped, name="nudge", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # False ends the thread. It comes after the nudges that wait, so these are still sent.
            self._waiting.put(False, timeout=_DRAIN_SECONDS)
        except queue.Full:
            log.warning("nudge_dropped", waiting=_MAX_WAITING)
        self._thread.join(timeout=_DRAIN_SECONDS)

    def nudge(self) -> None:
        """Queue one nudge and return at once. When a thousand nudges wait already, this one is dropped.

        Only the first of several dropped nudges is logged: a stuck broker must not slow requests down by log lines.
        """
        try:
            self._waiting.put_nowait(True)
        except queue.Full:
            self._on_failure()
            if not self._dropping:
                log.warning("nudge_dropped", waiting=_MAX_WAITING)
            self._dropping = True
        else:
            self._dropping = False

    def _send_until_stopped(self) -> None:
        while self._waiting.get():
            try:
                self._celery.send_task(TASK_NAME, queue=QUEUE_NAME, expires=NUDGE_EXPIRES_SECONDS, retry=False)
            except (OperationalError, OSError) as error:
                log.warning("nudge_failed", error=type(error).__name__)
                self._on_failure()
        self._celery.close()


def broker_answers(broker_url: str) -> bool:
    """Return whether the broker accepts a connection and answers, tried once and briefly."""
    try:
        with Connection(broker_url, transport_options=_TRANSPORT_OPTIONS) as connection:
            connection.ensure_connection(max_retries=0, timeout=1)
    except (OperationalError, OSError):
        return False
    return True
