"""The command ``python -m jobs.embedded``: run the servers that no URL is given for, until it is stopped.

It migrates the database and then writes one JSON line ``{"database_url", "broker_url"}`` to standard output. It stops
both servers cleanly on SIGTERM or SIGINT, when its standard input (a pipe) closes, or when its parent dies. The exit
code is 0 after a clean stop.
"""

import json
import os
import select
import signal
import stat
import sys
import threading
import time
from collections import deque
from typing import Final

import structlog
from pydantic import ValidationError

from jobs.embedded import EmbeddedServices
from jobs.kit.errors import InstallationError
from jobs.observability.logs import configure_logging
from jobs.settings import Settings

_POLL_SECONDS: Final = 0.25
# A server that dies more often than this within the window is not restarted any more.
_MAX_REVIVALS: Final = 20
_REVIVAL_WINDOW_SECONDS: Final = 60.0

logger = structlog.get_logger("jobs.embedded")


def main() -> int:
    """Run the servers, and return the process's exit code."""
    configure_logging()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        services = EmbeddedServices(Settings())
        urls = services.start()
    except ValidationError as error:
        return _refuse("; ".join(problem["msg"] for problem in error.errors(include_url=False)), 2)
    except InstallationError as error:
        return _refuse(error.detail, 1)
    try:
        sys.stdout.write(json.dumps({"database_url": urls.database_url, "broker_url": urls.broker_url}) + "\n")
        sys.stdout.flush()
        _hold(services, stopping)
    except InstallationError as error:
        logger.error("services_ended", reason=error.detail)
        return 1
    finally:
        services.stop()
    return 0


def _refuse(detail: str, exit_code: int) -> int:
    """Say why nothing was started. `quantry serve` shows this line to a person, so it is no log event."""
    sys.stderr.write(f"error [{InstallationError.code}]: {detail}\n")
    return exit_code


def _hold(services: EmbeddedServices, stopping: threading.Event) -> None:
    parent = os.getppid()
    watched = _watched_input()
    revivals: deque[float] = deque(maxlen=_MAX_REVIVALS)
    # A process whose parent died gets another parent.
    while not stopping.is_set() and os.getppid() == parent and not _closed(watched, stopping):
        for name in services.revive():
            revivals.append(time.monotonic())
            logger.warning("server_restarted", server=name)
            if len(revivals) == _MAX_REVIVALS and revivals[-1] - revivals[0] < _REVIVAL_WINDOW_SECONDS:
                raise InstallationError(f"{name} ended too often; its log is in the data directory under logs/.")


def _watched_input() -> int | None:
    """Return standard input if it is a pipe or socket; /dev/null and terminals close for other reasons."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    return sys.stdin.fileno() if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def _closed(watched: int | None, stopping: threading.Event) -> bool:
    """Wait a short time. Return True when the watched input has ended."""
    if watched is None:
        stopping.wait(_POLL_SECONDS)
        return False
    readable, _, _ = select.select([watched], [], [], _POLL_SECONDS)
    return bool(readable) and os.read(watched, 4096) == b""


if __name__ == "__main__":
    sys.exit(main())
