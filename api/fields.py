"""From pydantic's validation errors to the fields of a problem: where and what, never the value that was sent."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.errors import FieldError

_MAX_ERRORS = 50
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_OWN_MESSAGE = re.compile(r"^(Value|Assertion) error, ")


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
    return tuple(_field(f"?{_name(error['loc'])}", error) for error in errors)


def _field(pointer: str, error: Mapping[str, Any]) -> FieldError:
    detail = _OWN_MESSAGE.sub("", str(error["msg"]))
    return FieldError(pointer=pointer, code=str(error["type"]), detail=detail[:1].upper() + detail[1:])


def _follows_from_another(field: FieldError, fields: Iterable[FieldError]) -> bool:
    """pydantic also calls a list too short when entries were refused."""
    return field.code == "too_short" and any(other.pointer.startswith(f"{field.pointer}/") for other in fields)


def _name(location: Sequence[str | int]) -> str:
    """The declared parameter: an undeclared one is told only if it looks like a name."""
    name = str(location[1]) if len(location) > 1 else str(location[0])
    return name if _PLAIN_KEY.fullmatch(name) else ""


def _steps(error: Mapping[str, Any], body: object) -> Iterable[str]:
    """The location's steps that exist in the body; union tags and keys that do not look like names are left out."""
    here = body
    for step in error["loc"]:
        if isinstance(here, dict) and step in here:
            here = here[step]
            if not _PLAIN_KEY.fullmatch(str(step)):
                return
            yield str(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            yield str(step)
    last = error["loc"][-1] if error["loc"] else None
    if error["type"] == "missing" and last is not None:
        yield str(last)
