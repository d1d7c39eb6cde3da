"""HTTP requests that survive a restart of the service: retries with backoff, ``Retry-After``, and exceptions.

Every POST has an ``Idempotency-Key``, which is the same in each repetition. So repeating it is safe (RFC 9110, 9.2.2).
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from quantry.errors import QuantryError, error_from_response

_BUSY: Final = frozenset({429, 502, 503, 504})
_FIRST_DELAY_SECONDS: Final = 0.25
_LONGEST_DELAY_SECONDS: Final = 8.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 60.0


class Transport:
    """The connection to one service. A failed request is repeated ``retries`` times before its error is raised."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_seconds: float,
        retries: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"User-Agent": "quantry-client"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self.base_url = base_url
        self.retries = retries
        self.sleep = sleep
        _check_url(base_url)
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_seconds)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request, with repetitions, and return the successful (or 304) response.

        Raises:
            QuantryError: the service's problem, or ``unreachable`` if no answer came.
        """
        sent = dict(headers or {})
        if method == "POST":
            # Set once, before the loop, so that each repetition has the same key.
            sent.setdefault("Idempotency-Key", str(uuid.uuid4()))
        arguments: dict[str, Any] = {"params": dict(params or {}), "headers": sent}
        if json is not None:
            arguments["json"] = json
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                if last:
                    raise self.unreachable(error) from error
                self.sleep(backoff_seconds(attempt))
                continue
            if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
                return response
            delay = repeat_after_seconds(response, attempt)
            if last or delay is None:
                raise error_from_response(response)
            self.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, timeout_seconds: float | None = None
    ) -> Iterator[httpx.Response]:
        """Send one GET whose body the caller reads as it arrives. It is not repeated: only the caller can resume it."""
        timeout: Any = httpx.USE_CLIENT_DEFAULT if timeout_seconds is None else timeout_seconds
        with self._http.stream("GET", path, headers=dict(headers or {}), timeout=timeout) as response:
            if response.is_error:
                # The caller makes an exception from the body, which is not read by itself in a stream.
                response.read()
            yield response

    def unreachable(self, error: Exception) -> QuantryError:
        """Return the error for a service that does not answer."""
        return QuantryError(
            "unreachable",
            f"No service answers at {self.base_url} ({_reason(error)}).",
            hint="Start one with 'quantry serve', or name another with --url or QUANTRY_URL.",
        )


def backoff_seconds(attempt: int) -> float:
    """Return an exponential delay, with jitter, so that many clients do not repeat at the same moment."""
    return float(min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def repeat_after_seconds(response: httpx.Response, attempt: int) -> float | None:
    """Return the seconds to wait before repeating a request with this answer, or None if repeating does not help."""
    told = retry_after_seconds(response)
    if response.status_code in _BUSY or (response.status_code == httpx.codes.CONFLICT and _in_flight(response)):
        # The caller gets the error instead of a client that seems to hang.
        if told is not None and told > _LONGEST_RETRY_AFTER_SECONDS:
            return None
        return backoff_seconds(attempt) if told is None else told
    return None


def retry_after_seconds(response: httpx.Response) -> float | None:
    """Return ``Retry-After`` in seconds, from a number or a date; None if it is absent or neither."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _check_url(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, or a port that is not a number
        usable = False
    if not usable:
        raise QuantryError(
            "bad_input", f"Not the URL of a service: {base_url!r}.", hint="Write it as http://127.0.0.1:8000."
        )


def _in_flight(response: httpx.Response) -> bool:
    # An earlier repetition of this request still runs on the service; other conflicts do not go away.
    return error_from_response(response).code == "idempotency_in_flight"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
