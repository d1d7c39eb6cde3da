"""Telling a null that means something from a null that a generated client wrote for a field that was left out.

Generators such as ``datamodel-code-generator`` give every optional field the value null and send it. No person writes
null for a field that can not be null, such as ``policy.weights``. So where such a null stands, whoever wrote the object
writes null for what was left out, and every null of the object is read that way. Elsewhere null keeps its meaning:
``{"preset": "best-w4a4", "training": null}`` trains nothing.
"""

from collections.abc import Collection
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel


class WithNullsForLeftOut(dict[str, Any]):
    """An object inside one whose writer writes null for what was left out: its own nulls are read the same way."""


def without_left_out(model: type[BaseModel], value: Any, *, downwards: bool = False) -> Any:
    """Return the object ``value`` without the nulls that stand for fields that were left out.

    ``downwards`` marks the objects inside it, so that the same holds for them. Nulls of unknown and of required fields
    stay, so that they are refused.
    """
    if not isinstance(value, dict) or not _writes_null_for_left_out(model, value):
        return value
    optional = {name for name, field in model.model_fields.items() if not field.is_required()}
    given = {key: each for key, each in value.items() if each is not None or key not in optional}
    return {key: _marked(each) for key, each in given.items()} if downwards else given


def _writes_null_for_left_out(model: type[BaseModel], value: dict[str, Any]) -> bool:
    if isinstance(value, WithNullsForLeftOut):
        return True
    never = _never_null(model)
    # A request may hold thousands of messages, whose fields are all required.
    return bool(never) and any(value.get(name, ...) is None for name in never)


@cache
def _never_null(model: type[BaseModel]) -> Collection[str]:
    """Return the names of optional fields for which null is no value."""
    return [
        name
        for name, field in model.model_fields.items()
        if not field.is_required() and type(None) not in get_args(field.annotation)
    ]


def _marked(value: Any) -> Any:
    if isinstance(value, dict):
        return WithNullsForLeftOut({key: _marked(each) for key, each in value.items()})
    return [_marked(each) for each in value] if isinstance(value, list) else value
