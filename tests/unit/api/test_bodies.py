"""All bodies of one application together: two are parsed at a time, two large ones answered, and few bytes wait."""

import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel, model_validator
from starlette.requests import Request

from api.body import SMALL_BODY_BYTES, Bodies, validate
from api.errors import BodyTimeout
from jobs.kit.errors import BodyTooLarge, Unavailable
from jobs.settings import Settings

_LARGE = SMALL_BODY_BYTES + 1000


class Slow(BaseModel):
    """A body whose validation takes a while, and counts how many are validated at once."""

    text: str
    running: ClassVar[int] = 0
    most: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()

    @model_validator(mode="before")
    @classmethod
    def _take_time(cls, value: Any) -> Any:
        with cls.lock:
            Slow.running += 1
            Slow.most = max(Slow.most, Slow.running)
        time.sleep(0.02)
        with cls.lock:
            Slow.running -= 1
        return value


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    Slow.running = Slow.most = 0
    return Bodies(Settings(data_dir=tmp_path, max_body_bytes=2 * _LARGE, body_seconds=20.0), held_bytes=0)


def _request(text: int, arrives: Callable[[], Awaitable[None]] | None = None) -> Request:
    """A request whose last byte arrives when ``arrives`` returns."""
    body = b'{"text": "' + b"x" * text + b'"}'
    parts = [body[:-1], body[-1:]]

    async def receive() -> dict[str, Any]:
        if len(parts) == 1 and arrives is not None:
            await arrives()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    headers = [(b"content-length", str(len(body)).encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


async def _parse(bodies: Bodies, request: Request) -> Slow | None:
    async with bodies.parsed(request, partial(validate, Slow), has_text=True) as body:
        return body


def test_two_are_parsed_at_a_time_and_take_no_thread_of_the_endpoints(bodies: Bodies) -> None:
    async def main() -> int:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(_parse, bodies, _request(10))
            await anyio.sleep(0.03)
            return anyio.to_thread.current_default_thread_limiter().borrowed_tokens
        raise AssertionError("returned above")

    assert anyio.run(main) == 0
    assert Slow.most == 2


def test_two_large_ones_are_answered_at_a_time_and_small_ones_pass(bodies: Bodies) -> None:
    async def main() -> None:
        answered, held, ended = [], 0, anyio.Event()

        async def answer() -> None:
            nonlocal held
            async with bodies.parsed(_request(_LARGE), partial(validate, Slow), has_text=True):
                held += 1
                await ended.wait()
            answered.append(held)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(answer)
            with anyio.fail_after(10):
                while held < 2:
                    await anyio.sleep(0.01)
            assert await _parse(bodies, _request(10)) is not None
            await anyio.sleep(0.1)
            assert held == 2
            ended.set()
        assert answered[-1] == 3

    anyio.run(main)


def test_few_bytes_of_large_ones_wait_and_all_are_given_back(bodies: Bodies) -> None:
    async def main() -> None:
        arrives = anyio.Event()
        async with anyio.create_task_group() as group:
            # There is room for four of the largest bodies, which is seven of these and a part of the eighth.
            for _ in range(7):
                group.start_soon(_parse, bodies, _request(_LARGE, arrives.wait))
            await anyio.sleep(0.05)
            with pytest.raises(Unavailable) as refused:
                await _parse(bodies, _request(_LARGE))
            assert refused.value.headers["Retry-After"]
            assert await _parse(bodies, _request(10)) is not None, "a small one never waits for room"
            arrives.set()
        assert await _parse(bodies, _request(_LARGE)) is not None

    anyio.run(main)
    assert bodies._held_bytes == 0


def test_what_was_held_is_given_back_after_every_failure(tmp_path: Path) -> None:
    bodies = Bodies(Settings(data_dir=tmp_path, max_body_bytes=2048, body_seconds=0.05))

    async def main() -> None:
        with pytest.raises(BodyTooLarge):
            await _parse(bodies, _request(3000))
        with pytest.raises(BodyTimeout):
            await _parse(bodies, _request(10, anyio.sleep_forever))
        with pytest.raises(RuntimeError, match="of the endpoint"):
            async with bodies.parsed(_request(10), partial(validate, Slow), has_text=True):
                raise RuntimeError("of the endpoint")

    anyio.run(main)
    assert bodies._held_bytes == 0
