"""Ids that the server makes: a prefix for the kind of object, and 96 random bits."""

import re
import secrets
from typing import Final, Literal

_PATTERN: Final = re.compile(r"(job|art|cred|pub|wh|msg)_[0-9a-f]{24}")


def new_id(prefix: Literal["job", "art", "cred", "pub", "wh", "msg"]) -> str:
    """Return a new id, such as ``job_3f9c…``."""
    return f"{prefix}_{secrets.token_hex(12)}"


def is_id(text: str) -> bool:
    """Return whether the text has the form of an id of this service."""
    return _PATTERN.fullmatch(text) is not None
