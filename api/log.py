"""The API's log: the service's one shape of line, with the request's id bound to it."""

import logging

from jobs.observability.logs import configure_logging


def configure() -> None:
    """Send what structlog, uvicorn and the standard library log to standard error, as JSON. Safe to call again.

    uvicorn's own access log is silenced: it has the query string, which may hold what is nobody's business.
    """
    configure_logging()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
