"""Converting pydantic's validation errors to the fields of a problem: the place and the fault, never the value."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from api.field_names import looks_like_field_name
from jobs.kit.errors import FieldError

_MAX_ERRORS = 50
_OWN_MESSAGE = re.compile(r"^(Value|Assertion) error, ")
_REMEDIES = {
    "extra_forbidden": "There is no such field here. Remove it, or see /openapi.json for the names.",
    "missing": "This field is required. Add it.",
}


def body_errors(errors: Iterable[Mapping[str, Any]], body: object) -> tuple[FieldError, ...]:
    """Return what does not fit in a body, by JSON pointer: each place and code once, and at most 50 entries.

    ``errors`` are ``ValidationError.errors()``; ``body`` is the validated value, which separates keys from union tags.
    """
    fields: dict[tuple[str, str], FieldError] = {}
    for error in errors:
        field = _field("".join(f"/{step}" for step in _steps(error, body)), error)
        fields.setdefault((field.pointer, field.code), field)
        if len(fields) == _MAX_ERRORS:
            break
    return tuple(field for field in fields.values() if not _follows_from_another(field, fields.values()))


def parameter_errors(errors: Iterable[Mapping[str, Any]]) -> tuple[FieldError, ...]:
    """Return what does not fit in the query, path or headers, by parameter name: ``?limit``."""
    return tuple(_field(f"?{error['loc'][-1]}", error) for error in errors)


def _field(pointer: str, error: Mapping[str, Any]) -> FieldError:
    code = str(error["type"])
    detail = _REMEDIES.get(code) or _OWN_MESSAGE.sub("", str(error["msg"]))
    return FieldError(pointer=pointer, code=code, detail=detail[:1].upper() + detail[1:])


def _follows_from_another(field: FieldError, fields: Iterable[FieldError]) -> bool:
    """Return whether the error only follows from others: pydantic calls a list too short if entries were refused."""
    return field.code == "too_short" and any(other.pointer.startswith(f"{field.pointer}/") for other in fields)


def _steps(error: Mapping[str, Any], body: object) -> Iterable[str]:
    """Yield the steps of a location that exist in the body, without union tags, and none from an unsafe key on."""
    here = body
    for step in error["loc"]:
        if isinstance(here, dict) and step in here:
            here = here[step]
            if not looks_like_field_name(step):
                return
            yield str(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            yield str(step)
    last = error["loc"][-1] if error["loc"] else None
    # A missing field does not exist in the body, so the loop above did not yield it.
    if error["type"] == "missing" and last is not None:
        yield str(last)
