"""Names to addresses, within a time limit: the system's resolver has none that a caller could set."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, Final, Protocol

from jobs.webhooks.addresses import Address

_LOOK_UPS: Final = 32


class Resolver(Protocol):
    """Whoever turns a name into addresses."""

    def __call__(self, host: str, port: int, timeout_seconds: float) -> tuple[Address, ...]:
        """Every address of ``host``, in the order to try them. Raises: OSError, TimeoutError being one."""
        ...


class SystemResolver:
    """``getaddrinfo`` in a thread of its own. One that hangs is left behind; at most 32 can be."""

    def __init__(self, look_up: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._free = threading.BoundedSemaphore(_LOOK_UPS)

    def __call__(self, host: str, port: int, timeout_seconds: float) -> tuple[Address, ...]:
        """See :class:`Resolver`."""
        if not self._free.acquire(blocking=False):
            raise TimeoutError("too many look-ups hang")
        found: Future[list[Any]] = Future()

        def look() -> None:
            try:
                found.set_result(self._look_up(host, port, type=socket.SOCK_STREAM))
            except Exception as error:  # noqa: BLE001 - told to whoever waits
                found.set_exception(error)
            finally:
                self._free.release()

        threading.Thread(target=look, name="webhook-resolver", daemon=True).start()
        entries = found.result(max(timeout_seconds, 0.0))
        addresses = (ip_address(entry[4][0]) for entry in entries)
        return tuple(dict.fromkeys(addresses))
