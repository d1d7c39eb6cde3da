"""One format of log lines for every process: a JSON object with ``time``, ``level``, ``logger`` and ``event``.

Ids are bound where they become known (``structlog.contextvars``), and are then on every line. The API has
``request_id``. The worker has ``job_id``, ``attempt`` and ``fence``, and the ``request_id`` that queued the job.
"""

import logging
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SHARED: Final[tuple[Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
)


def configure_logging(level: int = logging.INFO, **fields: object) -> None:
    """Send what structlog and the standard library log to standard error. It may be called again.

    ``fields`` are on every line of this process, from every thread. A line's own field of the same name replaces them.
    """

    def with_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**fields, **event}

    shared = [with_fields, *_SHARED]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # A cached logger would keep the settings of an earlier call.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # For lines of the standard library, such as uvicorn's and SQLAlchemy's.
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    # Replaced, not added: a second call must not write every line twice.
    root.handlers[:] = [handler]
    root.setLevel(level)
