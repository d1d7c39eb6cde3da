"""When the Hub is asked again, by a clock that only the waits move."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

from worker.download.hub_retry import HubBackoff, retry_after_seconds, retry_with_backoff


@dataclass
class Clock:
    """Time that passes by waiting alone."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def answered(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx.Request("GET", "http://127.0.0.1/signed?secret")
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return HfHubHTTPError("no", response=httpx.Response(status, headers=sent, request=request))


def backoff(clock: Clock, seconds: float = 60.0, said: list[str] | None = None) -> HubBackoff:
    told = (lambda why, _: said.append(why)) if said is not None else None
    return HubBackoff(seconds, sleep=clock.sleep, clock=lambda: clock.now, on_wait=told)


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def ask() -> str:
        if left:
            raise left.pop(0)
        return "here"

    return ask


def test_the_hubs_word_is_followed_to_the_second() -> None:
    clock, said = Clock(), list[str]()
    busy = answered(429, Retry_After="7"), answered(429, RateLimit='"api";r=0;t=9'), answered(503, Retry_After="2")
    assert retry_with_backoff(failing(*busy), backoff(clock, said=said)) == "here"
    assert clock.waits == [7, 9, 2]
    assert said == ["the Hub answered with HTTP status 429"] * 2 + ["the Hub answered with HTTP status 503"]


def test_without_a_word_the_waits_grow() -> None:
    clock = Clock()
    errors = [answered(502), httpx.ConnectError("no"), httpx.ReadTimeout("slow"), answered(500)]
    assert retry_with_backoff(failing(*errors), backoff(clock)) == "here"
    for number, waited in enumerate(clock.waits):
        assert 0.25 * 2**number <= waited <= 0.5 * 2**number


def test_a_wait_beyond_patience_is_not_begun() -> None:
    clock = Clock()
    with pytest.raises(HfHubHTTPError):
        retry_with_backoff(failing(answered(429, Retry_After="61")), backoff(clock))
    assert clock.waits == []


def test_patience_ends_and_progress_renews_it() -> None:
    clock = Clock()
    bounded = backoff(clock)
    with pytest.raises(httpx.ConnectError):
        retry_with_backoff(failing(*[httpx.ConnectError("no")] * 99), bounded)
    assert 20 <= clock.now <= 60
    bounded.progressed()
    bounded.wait(answered(429, Retry_After="50"))
    assert clock.waits[-1] == 50


@pytest.mark.parametrize("error", [answered(401), answered(403, Retry_After="1"), answered(404)])
def test_a_refusal_is_final(error: HfHubHTTPError) -> None:
    clock = Clock()
    with pytest.raises(HfHubHTTPError):
        retry_with_backoff(failing(error), backoff(clock))
    assert clock.waits == []


def test_told_seconds_reads_what_servers_send() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after_seconds(answered(429, Retry_After=soon)) == pytest.approx(30, abs=3)
    assert retry_after_seconds(answered(429, Retry_After="soon")) is None
    assert retry_after_seconds(answered(429, RateLimit='"api";r=5;t=9')) is None
    assert retry_after_seconds(httpx.ConnectError("no")) is None
