"""The HTTP settings of the Hub client for uploads: time limits, a count of bytes, and an early error for a busy Hub.

The client itself repeats a part of a file after a broken connection or a storage error. Every other busy answer ends
the attempt. The publication then waits in the queue, where it does not occupy a worker.
"""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_TIMEOUT: Final = httpx.Timeout(connect=15.0, read=180.0, write=120.0, pool=15.0)
_UPLOAD: Final = "PUT"


class HubBusy(Exception):
    """The Hub can not answer now. ``retry_after``: the seconds that it asks to wait, or None."""

    def __init__(self, status: int, retry_after: float | None) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.retry_after = retry_after


class Meter:
    """Counts the uploaded bytes of files; a part that is sent again counts once. Can be used from any thread."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """The bytes that were sent since the last :meth:`clear`."""
        with self._lock:
            return sum(self._sent.values())

    def clear(self) -> None:
        """Set the count to zero, because these bytes are counted elsewhere now."""
        with self._lock:
            self._sent.clear()

    def watch(self, request: httpx.Request) -> None:
        """Count the bytes of ``request``; an httpx request hook."""
        if request.method == _UPLOAD and isinstance(request.stream, httpx.SyncByteStream):
            request.stream = _Counted(request.stream, self, str(request.url))

    def restart(self, url: str) -> None:
        """Set the count of ``url`` to zero, because a request to it begins."""
        with self._lock:
            self._sent[url] = 0

    def add(self, url: str, count: int) -> None:
        """Add ``count`` bytes that were sent to ``url``."""
        with self._lock:
            self._sent[url] = self._sent.get(url, 0) + count


class _Counted(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, meter: Meter, url: str) -> None:
        self._stream = stream
        self._meter = meter
        self._url = url

    def __iter__(self) -> Iterator[bytes]:
        self._meter.restart(self._url)
        for chunk in self._stream:
            yield chunk
            self._meter.add(self._url, len(chunk))

    def close(self) -> None:
        self._stream.close()


def install(meter: Meter) -> None:
    """Make huggingface_hub use such clients in this process from now on."""

    def factory() -> httpx.Client:
        client = default_client_factory()
        client.timeout = _TIMEOUT
        client.event_hooks = {
            "request": [*client.event_hooks["request"], meter.watch],
            "response": [*client.event_hooks["response"], _refuse_to_wait],
        }
        return client

    set_client_factory(factory)


def _refuse_to_wait(response: httpx.Response) -> None:
    """Refuse a busy answer; an httpx response hook. Raises: HubBusy."""
    if response.status_code not in BUSY:
        return
    retry_after = _retry_after(response)
    # A storage error of one part, without a time to wait: the client repeats that part itself.
    if response.request.method != _UPLOAD or retry_after is not None:
        raise HubBusy(response.status_code, retry_after)


def _retry_after(response: httpx.Response) -> float | None:
    header = response.headers.get("Retry-After", "").strip()
    if header.isdecimal():
        return float(header)
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0) if moment.tzinfo else None
