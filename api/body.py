"""Reading a request's JSON body with a size limit and strict rules, as a frozen type or a problem."""

import json
import math
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from api.errors import InvalidFields, MalformedJson, UnsupportedMediaType
from api.fields import body_errors
from api.negotiation import media_type
from jobs.kit.errors import BodyTooLarge

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the whole body, if it has at most ``limit`` bytes.

    Raises:
        BodyTooLarge: the Content-Length is larger, or more bytes arrive; it is raised as early as possible.
    """
    announced = request.headers.get("content-length", "")
    # A number of more than 18 digits is always too large, so it is not converted.
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise BodyTooLarge(limit)
    chunks: list[bytes] = []
    size = 0
    # The bytes are counted too: Content-Length may be absent or wrong.
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType unless the request says that its body is JSON."""
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise UnsupportedMediaType


def parse_json(raw: bytes) -> object:
    """Parse one interoperable JSON value as RFC 8259 describes it: no NaN, no overflow, no key twice in an object.

    Raises:
        MalformedJson: its message has the kind and the place of the error, and nothing of what was sent.
    """
    try:
        return json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8. Encode the JSON text as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(
            f"The body is not JSON (line {error.lineno}, column {error.colno}). Send one JSON object."
        ) from None
    except RecursionError:
        raise MalformedJson("The JSON is nested too deeply. Flatten it.") from None
    except ValueError:  # Python refuses an integer with thousands of digits
        raise MalformedJson("The JSON holds a number that is too long. Use a smaller one.") from None


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


def _refuse_constant(_name: str) -> NoReturn:
    raise MalformedJson("NaN and Infinity are not JSON. Use a finite number.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedJson("The JSON holds a number beyond the range of a 64-bit float. Use a smaller one.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    # json.loads would silently use the last value of a repeated key.
    if len(members) < len(pairs):
        raise MalformedJson("An object of the JSON has the same key twice. Give each key once.")
    return members
