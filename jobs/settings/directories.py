"""Parsing ``QUANTRY_MODEL_LINK_DIRS``."""

import os
import re
from pathlib import Path


def parse_directories(text: str) -> tuple[Path, ...]:
    """Parse directories that are separated by commas or as in ``PATH``.

    Raises:
        ValueError: one is not absolute, or is the root of the file system.
    """
    found = tuple(
        Path(part.strip()).expanduser() for part in re.split(f"[,{re.escape(os.pathsep)}]", text) if part.strip()
    )
    for path in found:
        if not path.is_absolute() or path.resolve() == Path(path.anchor):
            raise ValueError(
                "QUANTRY_MODEL_LINK_DIRS must be absolute directories, separated by commas, and not the root of the "
                "file system."
            )
    return found
