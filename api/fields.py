"""From pydantic's validation errors to the fields of a problem: where and what, never the value that was sent."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from api.names import is_tellable
from jobs.kit.errors import FieldError

_MAX_ERRORS = 50
_OWN_MESSAGE = re.compile(r"^(Value|Assertion) error, ")
_REMEDIES = {
    "extra_forbidden": "There is no such field here. Remove it, or see /openapi.json for the names.",
    "missing": "This field is required. Add it.",
}


def body_errors(errors: Iterable[Mapping[str, Any]], body: object) -> tuple[FieldError, ...]:
    """What does not fit in a body, by JSON pointer, each place and code once and at most 50 of them.

    ``errors`` are ``ValidationError.errors()``; ``body`` is what was validated, to tell keys from union tags.
    """
    fields: dict[tuple[str, str], FieldError] = {}
    for error in errors:
        field = _field("".join(f"/{step}" for step in _steps(error, body)), error)
        fields.setdefault((field.pointer, field.code), field)
        if len(fields) == _MAX_ERRORS:
            break
    return tuple(field for field in fields.values() if not _follows_from_another(field, fields.values()))


def parameter_errors(errors: Iterable[Mapping[str, Any]]) -> tuple[FieldError, ...]:
    """What does not fit in the query, path or headers, by parameter name: ``?limit``."""
    return tuple(_field(f"?{error['loc'][-1]}", error) for error in errors)


def _field(pointer: str, error: Mapping[str, Any]) -> FieldError:
    code = str(error["type"])
    detail = _REMEDIES.get(code) or _OWN_MESSAGE.sub("", str(error["msg"]))
    return FieldError(pointer=pointer, code=code, detail=detail[:1].upper() + detail[1:])


def _follows_from_another(field: FieldError, fields: Iterable[FieldError]) -> bool:
    """pydantic also calls a list too short when entries were refused."""
    return field.code == "too_short" and any(other.pointer.startswith(f"{field.pointer}/") for other in fields)


def _steps(error: Mapping[str, Any], body: object) -> Iterable[str]:
    """The location's steps that exist in the body; union tags are left out, and what lies in an untellable key."""
    here = body
    for step in error["loc"]:
        if isinstance(here, dict) and step in here:
            here = here[step]
            if not is_tellable(step):
                return
            yield str(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            yield str(step)
    last = error["loc"][-1] if error["loc"] else None
    if error["type"] == "missing" and last is not None:
        yield str(last)
