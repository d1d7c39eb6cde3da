"""``python -m jobs.embedded``: start what no URL is given for, migrate, say where it is, hold it until told to stop.

Writes one JSON line ``{"database_url", "broker_url"}`` to standard output when ready. Stops both servers cleanly on
SIGTERM or SIGINT, when its standard input (a pipe) closes, or when its parent dies. Exit 0 after a clean stop.
"""

import json
import logging
import os
import select
import signal
import stat
import sys
import threading
import time
from collections import deque
from typing import Final

from pydantic import ValidationError

from jobs.embedded import EmbeddedServices
from jobs.kit.errors import InstallationError
from jobs.settings import Settings

_POLL_SECONDS: Final = 0.25
_MAX_REVIVALS: Final = 20
_REVIVAL_WINDOW_SECONDS: Final = 60.0

_logger = logging.getLogger("jobs.embedded")


def main() -> int:
    """The process's exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    told_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_stop.set())
    try:
        services = EmbeddedServices(Settings())
        urls = services.start()
    except ValidationError as error:
        _logger.error("%s", "; ".join(problem["msg"] for problem in error.errors(include_url=False)))
        return 2
    except InstallationError as error:
        _logger.error("%s", error.detail)
        return 1
    try:
        sys.stdout.write(json.dumps({"database_url": urls.database_url, "broker_url": urls.broker_url}) + "\n")
        sys.stdout.flush()
        _hold(services, told_to_stop)
    except InstallationError as error:
        _logger.error("%s", error.detail)
        return 1
    finally:
        services.stop()
    return 0


def _hold(services: EmbeddedServices, told_to_stop: threading.Event) -> None:
    parent = os.getppid()
    watched = _watched_input()
    revivals: deque[float] = deque(maxlen=_MAX_REVIVALS)
    while not told_to_stop.is_set() and os.getppid() == parent and not _closed(watched, told_to_stop):
        for name in services.revive():
            revivals.append(time.monotonic())
            _logger.warning("%s had died and was started again", name)
            if len(revivals) == _MAX_REVIVALS and revivals[-1] - revivals[0] < _REVIVAL_WINDOW_SECONDS:
                raise InstallationError(f"{name} keeps dying; its log is in the data directory under logs/.")


def _watched_input() -> int | None:
    """Standard input, when somebody holds its other end; /dev/null and terminals close for other reasons."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    return sys.stdin.fileno() if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def _closed(watched: int | None, told_to_stop: threading.Event) -> bool:
    """Wait a moment; True when the watched input has ended."""
    if watched is None:
        told_to_stop.wait(_POLL_SECONDS)
        return False
    readable, _, _ = select.select([watched], [], [], _POLL_SECONDS)
    return bool(readable) and os.read(watched, 4096) == b""


if __name__ == "__main__":
    sys.exit(main())
