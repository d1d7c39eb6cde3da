"""Repeating requests while the Hub is busy, fails or can not be reached: when, and for how long."""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import httpx
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import parse_ratelimit_headers

Answer = TypeVar("Answer")

_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 30.0
# "Retry-After: 0" must not become a loop without a pause.
_SHORTEST_SECONDS: Final = 0.05


class HubBackoff:
    """The waits of one exchange with the Hub, for at most ``seconds`` without any progress.

    ``on_wait`` is called before each wait, with its reason and its seconds. If the Hub gives a time (``Retry-After``,
    ``RateLimit``), that is used. Otherwise the waits double, with jitter, up to half a minute.
    """

    def __init__(
        self,
        seconds: float,
        *,
        on_wait: Callable[[str, float], None] | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._on_wait = on_wait
        self._sleep = sleep
        self._clock = clock
        self.progressed()

    def progressed(self) -> None:
        """Start the time and the waits again, because data has arrived."""
        self._deadline = self._clock() + self._seconds
        self._failures = 0

    def wait(self, error: httpx.HTTPError) -> None:
        """Sleep until the request that raised ``error`` is worth repeating.

        Raises:
            httpx.HTTPError: ``error`` itself, if a repetition would not help, or the wait would be too long.
        """
        if not is_passing(error):
            raise error
        retry_after = retry_after_seconds(error)
        backoff = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2**self._failures)
        delay = backoff * random.uniform(0.5, 1.0) if retry_after is None else max(retry_after, _SHORTEST_SECONDS)  # noqa: S311 - jitter
        if self._clock() + delay > self._deadline:
            raise error
        self._failures += 1
        if self._on_wait is not None:
            self._on_wait(reason(error), delay)
        self._sleep(delay)


def retry_with_backoff(ask: Callable[[], Answer], backoff: HubBackoff) -> Answer:
    """Call ``ask`` until it succeeds or a repetition would not help, and return its result.

    Raises:
        httpx.HTTPError: the last error of ``ask``.
    """
    while True:
        try:
            return ask()
        except httpx.HTTPError as error:
            backoff.wait(error)


def is_passing(error: httpx.HTTPError) -> bool:
    """Return whether the same request may succeed later: the connection failed, or the Hub is busy or has an error."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, httpx.TransportError)


def reason(error: httpx.HTTPError) -> str:
    """Describe ``error`` in a few words, without the request's address, which may be a signed one."""
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered with HTTP status {error.response.status_code}"
    return f"the connection to the Hub failed ({type(error).__name__})"


def retry_after_seconds(error: httpx.HTTPError) -> float | None:
    """Return the wait that the Hub asks for: ``Retry-After``, as seconds or a date, or the reset of ``RateLimit``."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a time zone
        limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
