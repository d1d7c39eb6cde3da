"""Reading a request's JSON body within a budget, as a frozen type or a problem.

A body costs memory while it arrives, and processor time while it is parsed. Both are limited for each body and for all
of them together, so that no client can stop the service for the others.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import anyio
from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from api.errors import BodyTimeout, InvalidFields, LengthRequired, UnsupportedMediaType
from api.fields import body_errors
from api.json_text import SMALL_BUDGET, TEXT_BUDGET, parse_json
from api.negotiation import media_type
from jobs.kit.errors import BodyTooLarge, Unavailable
from jobs.settings import Settings

SMALL_BODY_BYTES: Final = 256 << 10
"""The largest body of a request that carries no text, and the largest one without Content-Length."""
_PARSED_AT_A_TIME: Final = 2
_HELD_BYTES: Final = 64 << 20
_BODY_SECONDS: Final = 60.0

Model = TypeVar("Model", bound=BaseModel)
Reader = Callable[[object], Model]
"""Makes a model of a JSON value, or raises InvalidFields."""


class NoFields(BaseModel):
    """The body of an operation that takes no fields."""

    model_config = ConfigDict(extra="forbid")


class Bodies:
    """The bodies that one application reads, with what limits all of them together.

    Two bodies are parsed at a time, in threads of their own: endpoints and health checks do not wait for them. Two
    requests with large bodies are answered at a time. The bytes that have arrived for all large bodies are limited too.
    """

    def __init__(self, settings: Settings, *, held_bytes: int = _HELD_BYTES) -> None:
        self._settings = settings
        self._parsing = anyio.CapacityLimiter(_PARSED_AT_A_TIME)
        self._large = anyio.CapacityLimiter(_PARSED_AT_A_TIME)
        self._held_bytes = 0
        self._most_bytes = max(held_bytes, 4 * settings.max_body_bytes)

    @asynccontextmanager
    async def parsed(self, request: Request, read: Reader[Model], *, has_text: bool) -> AsyncIterator[Model | None]:
        """Yield what ``read`` makes of the body's JSON value, or None if it is empty.

        A large body is held to the end of the block.

        Raises:
            BodyTooLarge, LengthRequired, BodyTimeout: reading it.
            Unavailable: too many bytes of other bodies wait.
            MalformedJson, BodyTooComplex, InvalidFields: parsing it.
        """
        most = self._settings.max_body_bytes
        limit = most if has_text else min(most, SMALL_BODY_BYTES)
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            # Small bodies always pass: a cancel does not wait for those who send texts.
            if held + size > SMALL_BODY_BYTES and self._held_bytes + size > self._most_bytes:
                raise Unavailable("Too many large bodies arrive at once. Repeat the request in a few seconds.")
            held += size
            self._held_bytes += size

        try:
            raw = await read_body(request, limit, seconds=self._settings.body_seconds, hold=hold)
            if len(raw) <= SMALL_BODY_BYTES:
                yield await self._model(raw, read, has_text=has_text)
                return
            async with self._large:
                yield await self._model(raw, read, has_text=has_text)
        finally:
            self._held_bytes -= held

    async def _model(self, raw: bytes, read: Reader[Model], *, has_text: bool) -> Model | None:
        if not raw:
            return None
        # The limiter has threads of its own, so those of the endpoints stay free.
        return await run_sync(partial(_parse, raw, read, has_text=has_text), limiter=self._parsing)


def _parse(raw: bytes, read: Reader[Model], *, has_text: bool) -> Model:
    return read(parse_json(raw, TEXT_BUDGET if has_text else SMALL_BUDGET))


async def read_body(
    request: Request, limit: int, *, seconds: float = _BODY_SECONDS, hold: Callable[[int], None] = lambda _: None
) -> bytes:
    """Return the whole body, if it has at most ``limit`` bytes. ``hold`` is told the size of each part that arrives.

    Raises:
        BodyTooLarge: the Content-Length is larger, or more bytes arrive; it is raised as early as possible.
        LengthRequired: a large body comes without Content-Length: parsing millions of chunks takes long.
        BodyTimeout: the body has not arrived within ``seconds``.
    """
    announced = request.headers.get("content-length", "")
    # A number of more than 18 digits is always too large, so it is not converted.
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise BodyTooLarge(limit)
    allowed = limit if announced else min(limit, SMALL_BODY_BYTES)
    body = bytearray()
    try:
        with anyio.fail_after(seconds):
            # The bytes are counted too: Content-Length may be absent or wrong.
            async for chunk in request.stream():
                if len(body) + len(chunk) > allowed:
                    raise BodyTooLarge(limit) if allowed == limit else LengthRequired(allowed)
                hold(len(chunk))
                body += chunk
    except TimeoutError:
        raise BodyTimeout(seconds) from None
    return bytes(body)


def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType unless the request says that its body is JSON."""
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise UnsupportedMediaType


def validate(model: type[Model], value: object) -> Model:
    """Return ``value`` as a ``model``.

    Raises:
        InvalidFields: one entry for each field that does not fit.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Without the input: it could contain a secret of the client. The context holds what our types say.
        details = error.errors(include_url=False, include_input=False)
        raise InvalidFields(body_errors(details, value, model)) from None
