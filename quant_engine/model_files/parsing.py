"""Parse the JSON files of a model: objects only, and nothing in them may make a library run foreign code."""

import json
from typing import Any, Final

from quant_engine.errors import InvalidModel

MAX_DEPTH: Final = 64
"""Objects and lists within one another. Real files have about six; libraries recurse over them."""

REPAIR: Final = "Download or export the model again, or repair the file, and retry."


def json_object(name: str, content: bytes) -> dict[str, Any]:
    """Return the JSON object in a file's content.

    Raises:
        InvalidModel: it is not JSON, no object, or nested too deeply.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(detail=f"The model's {name} is not JSON.", hint=REPAIR) from error
    if not isinstance(value, dict):
        raise InvalidModel(detail=f"The model's {name} is not a JSON object.", hint=REPAIR)
    if _is_deeper(value, MAX_DEPTH):
        raise InvalidModel(
            detail=f"The model's {name} has objects and lists more than {MAX_DEPTH} levels deep.", hint=REPAIR
        )
    return value


def safe_config(value: Any) -> Any:
    """Return the content of ``config.json`` without anything that could make a library run foreign code.

    Removes, at every depth, ``auto_map``, ``trust_remote_code`` and every key that starts with an underscore
    (CVE-2026-4372 and CVE-2026-5241 entered through those).
    """
    if isinstance(value, dict):
        return {
            key: safe_config(item)
            for key, item in value.items()
            if key not in ("auto_map", "trust_remote_code") and not key.startswith("_")
        }
    if isinstance(value, list):
        return [safe_config(item) for item in value]
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    """Return whether a value is nested deeper than ``limit``, without recursion."""
    level = [value]
    for _ in range(limit):
        level = [
            below
            for each in level
            for below in (each.values() if isinstance(each, dict) else each)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True
