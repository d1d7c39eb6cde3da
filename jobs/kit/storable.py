"""Making data of runners and clients storable: PostgreSQL's jsonb has no NaN, no NUL and no lone surrogate."""

import math
from collections.abc import Mapping
from typing import Any, Final

# One long message, such as a traceback, must not fill the database.
_MAX_TEXT: Final = 20_000


def storable_text(value: str) -> str:
    """Return the text as valid Unicode without NUL, with at most 20,000 characters."""
    text = value.replace("\x00", "").encode("utf-8", errors="replace").decode("utf-8")
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def storable_json(value: Any) -> Any:
    """Return the JSON value with null for non-finite numbers, and storable strings; other objects become text."""
    # Integers of any size are kept: jsonb stores them as numeric.
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, Mapping):
        return {storable_text(str(key)): storable_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable_json(item) for item in value]
    return storable_text(str(value))


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL accepts this text in a query."""
    return storable_text(text) == text
