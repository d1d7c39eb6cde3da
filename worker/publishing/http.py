"""The Hub client's HTTP when we upload: bounded in time, counted in bytes, and quick to say that the Hub is busy.

The client repeats a part of a file that broke off or met a storage error, in place. Everything else that is busy ends
the attempt: waiting is the queue's business, which holds nobody up meanwhile.
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
    """The Hub can not answer now. ``retry_after``: seconds, where it said so."""

    def __init__(self, status: int, retry_after: float | None) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.retry_after = retry_after


class Meter:
    """Counts the bytes of files that leave; a part that is sent again counts once. Safe from any thread."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What was sent since the last :meth:`clear`."""
        with self._lock:
            return sum(self._sent.values())

    def clear(self) -> None:
        """Begin at zero: what was sent is accounted for elsewhere."""
        with self._lock:
            self._sent.clear()

    def watch(self, request: httpx.Request) -> None:
        """An httpx request hook."""
        if request.method == _UPLOAD and isinstance(request.stream, httpx.SyncByteStream):
            request.stream = _Counted(request.stream, self, str(request.url))

    def restart(self, url: str) -> None:
        """A request to ``url`` begins."""
        with self._lock:
            self._sent[url] = 0

    def add(self, url: str, count: int) -> None:
        """``count`` more bytes went there."""
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
    """Let huggingface_hub use such clients from now on, in this process."""

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
    """An httpx response hook. Raises: HubBusy."""
    if response.status_code not in BUSY:
        return
    retry_after = _retry_after(response)
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
