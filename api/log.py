"""The API's log: the line format of the whole service, with the request's id on every line."""

import logging

from jobs.observability.logs import configure_logging


def configure() -> None:
    """Send what structlog, uvicorn and the standard library log to standard error, as JSON. It may be called again.

    uvicorn's own access log is turned off: it contains the query string, which may hold secrets.
    """
    configure_logging()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
