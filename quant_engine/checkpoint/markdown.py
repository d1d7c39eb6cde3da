"""Text that others wrote, made safe for Markdown, and tables of it."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

_PUNCTUATION: Final = re.compile(r"([\\`*_\[\]|~$])")
_ENTITIES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_MISSING: Final = "—"


def plain(text: str) -> str:
    """``text`` on one line, with nothing that Markdown or HTML would read as more than letters."""
    return _PUNCTUATION.sub(r"\\\1", _one_line(text)).translate(_ENTITIES)


def code(text: str) -> str:
    """``text`` as inline code, fenced by more backticks than it has in a row."""
    line = _one_line(text)
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else _MISSING


def code_cell(text: str) -> str:
    """:func:`code` in a table, where a bar would end the cell even in code."""
    return code(text).replace("|", "\\|")


def json_block(value: Any) -> str:
    """JSON in a fence that no string in it can close."""
    text = json.dumps(value, indent=2, sort_keys=True).replace("`", "\\u0060")
    return f"```json\n{text}\n```"


def number(value: float | None, digits: int = 4) -> str:
    """A number, to so many significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.{digits}g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """A table of cells that are already safe; the columns in ``right`` are aligned to the right."""
    to_the_right = set(right)
    rule = ["---:" if column in to_the_right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _one_line(text: str) -> str:
    """Without line breaks, control and formatting characters (which could reorder what is shown)."""
    return "".join(each for each in " ".join(text.split()) if each.isprintable())
