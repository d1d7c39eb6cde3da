"""Nudges over Celery: the worker's implementation of :class:`jobs.job.nudge.Nudger`."""

from collections.abc import Callable
from typing import Any, Final

import structlog
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from jobs.job.nudge import NUDGE_EXPIRES_SECONDS, QUEUE_NAME, TASK_NAME
from jobs.settings import Settings

_SOCKET_SECONDS: Final = 5.0
_HEALTH_SECONDS: Final = 5
_RECONNECT_SECONDS: Final = 2.0

logger = structlog.get_logger(__name__)


class EagerConnection(Connection):
    """A broker connection that is tried again after at most two seconds; kombu's own pauses grow to thirty."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return the connection once the broker answers."""
        pauses = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": _RECONNECT_SECONDS}
        return super().ensure_connection(*args, **{**pauses, **kwargs})


def make_celery(settings: Settings) -> Celery:
    """Make a Celery application without results: JSON only, early acknowledgement, no prefetching, short timeouts."""
    broker_url = settings.broker_url.get_secret_value() if settings.broker_url is not None else None
    celery = Celery("quantry", broker=broker_url, set_as_current=False)
    celery.amqp.Connection = EagerConnection
    celery.conf.update(
        # A nudge has no content. JSON alone, because a pickle from the broker could run code.
        accept_content=["json"],
        task_serializer="json",
        # The database holds the state of jobs, so a nudge that is lost with its worker does no harm.
        task_acks_late=False,
        task_ignore_result=True,
        task_default_queue=QUEUE_NAME,
        task_publish_retry=False,
        # A busy worker must not take nudges that an idle one could act on.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # A job does not need the broker, so it goes on while the broker is away.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # No limit: a worker without a broker still polls.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=_SOCKET_SECONDS,
        broker_transport_options={
            "socket_timeout": _SOCKET_SECONDS,
            "socket_connect_timeout": _SOCKET_SECONDS,
            "health_check_interval": _HEALTH_SECONDS,
        },
    )
    return celery


class CeleryNudger:
    """Sends nudges in the caller's thread, for at most a few seconds. The next sweep replaces a nudge that is lost."""

    def __init__(self, celery: Celery, on_failure: Callable[[], None] = lambda: None) -> None:
        self._celery = celery
        self._on_failure = on_failure

    def nudge(self) -> None:
        """Send one nudge."""
        try:
            self._celery.send_task(
                TASK_NAME, queue=QUEUE_NAME, expires=NUDGE_EXPIRES_SECONDS, retry=False, ignore_result=True
            )
        except (OperationalError, OSError) as error:
            logger.warning("nudge_failed", error=type(error).__name__)
            self._on_failure()
