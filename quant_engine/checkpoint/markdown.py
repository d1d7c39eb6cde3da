"""Make text from other sources safe for Markdown, and build tables of it."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

_PUNCTUATION: Final = re.compile(r"([\\`*_\[\]|~$])")
_ENTITIES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_MISSING: Final = "—"


def plain(text: str) -> str:
    """Return ``text`` on one line, with all characters escaped that have a meaning in Markdown or HTML."""
    return _PUNCTUATION.sub(r"\\\1", _one_line(text)).translate(_ENTITIES)


def code(text: str) -> str:
    """Return ``text`` as inline code, between more backticks than it has in a row."""
    line = _one_line(text)
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    # A space separates the fence from a backtick of the text; Markdown removes it again.
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else _MISSING


def code_cell(text: str) -> str:
    """Return :func:`code` for a table, with bars escaped, because a bar ends the cell even in code."""
    return code(text).replace("|", "\\|")


def json_block(value: Any) -> str:
    """Return JSON in a fence that no string in it can close."""
    # An escaped backtick is the same JSON, and can not be part of a fence.
    text = json.dumps(value, indent=2, sort_keys=True).replace("`", "\\u0060")
    return f"```json\n{text}\n```"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.{digits}g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Return a table of cells that are already safe; the columns in ``right`` are aligned to the right."""
    to_the_right = set(right)
    rule = ["---:" if column in to_the_right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _one_line(text: str) -> str:
    """Return ``text`` without line breaks, control and formatting characters (which could reorder the shown text)."""
    return "".join(each for each in " ".join(text.split()) if each.isprintable())
