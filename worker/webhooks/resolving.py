"""Resolving names within a time limit, which the system's resolver does not offer."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, Final, Protocol

from jobs.webhooks.addresses import Address

_LOOK_UPS: Final = 32


class Resolver(Protocol):
    """Something that resolves a name to addresses."""

    def __call__(self, host: str, port: int, timeout_seconds: float) -> tuple[Address, ...]:
        """Return every address of ``host``, in the order to try them. Raises: OSError (TimeoutError included)."""
        ...


class SystemResolver:
    """Runs ``getaddrinfo`` in a thread of its own. A look-up that hangs is abandoned; at most 32 can hang at once."""

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
            except Exception as error:  # noqa: BLE001 - raised again by found.result()
                found.set_exception(error)
            finally:
                self._free.release()

        threading.Thread(target=look, name="webhook-resolver", daemon=True).start()
        entries = found.result(max(timeout_seconds, 0.0))
        addresses = (ip_address(entry[4][0]) for entry in entries)
        # Without repetitions, in the system's order of preference.
        return tuple(dict.fromkeys(addresses))
