"""How deeply JSON is nested; also a program that checks one file.

``python json_nesting.py FILE LIMIT`` parses the file and keeps nothing of it: a tokenizer of 30 MB becomes hundreds of
megabytes of objects, and the interpreter does nothing else while it reads them. Its exit status is one of ``Found``.

It imports nothing of Quantry, so that it starts at once.
"""

import gc
import json
import resource
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

_MOST_BYTES = 4 * 2**30


class Found(IntEnum):
    """What a file is; other exit statuses say nothing about it."""

    OBJECT = 0
    NO_JSON = 3
    NO_OBJECT = 4
    TOO_DEEP = 5


def is_deeper(value: Any, limit: int) -> bool:
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


def found_in(content: bytes, limit: int) -> tuple[Found, Any]:
    """Return what the content of a file is, and its value."""
    try:
        value = json.loads(content)
    except RecursionError:
        return Found.TOO_DEEP, None
    except ValueError:
        return Found.NO_JSON, None
    if not isinstance(value, dict):
        return Found.NO_OBJECT, None
    return (Found.TOO_DEEP if is_deeper(value, limit) else Found.OBJECT), value


def main(file: str, limit: str) -> int:
    """Check one file; return what it is."""
    gc.disable()  # nothing is dropped before the end, and looking for it takes half of the time
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    return found_in(Path(file).read_bytes(), int(limit))[0]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
