"""Parse the JSON files of a model: objects only, and nothing in them may make a library run foreign code."""

from typing import Any, Final

from quant_engine.errors import InvalidModel
from quant_engine.model_files.json_nesting import Found, found_in

MAX_DEPTH: Final = 64
"""Objects and lists within one another. Real files have about six; libraries recurse over them."""

REPAIR: Final = "Download or export the model again, or repair the file, and retry."


def json_object(name: str, content: bytes) -> dict[str, Any]:
    """Return the JSON object in a file's content.

    Raises:
        InvalidModel: it is not JSON, no object, or nested too deeply.
    """
    found, value = found_in(content, MAX_DEPTH)
    problem = json_problem(name, found)
    if problem is not None:
        raise problem
    return dict(value)


def json_problem(name: str, found: Found) -> InvalidModel | None:
    """Return the problem of a file that is not the JSON object that it has to be; None if it is one."""
    what = {
        Found.NO_JSON: "is not JSON",
        Found.NO_OBJECT: "is not a JSON object",
        Found.TOO_DEEP: f"has objects and lists more than {MAX_DEPTH} levels deep",
    }
    return InvalidModel(detail=f"The model's {name} {what[found]}.", hint=REPAIR) if found in what else None


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
