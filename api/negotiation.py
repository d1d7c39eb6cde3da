"""``Accept``, ``Content-Type`` and ``If-None-Match`` (RFC 9110, sections 12.5.1, 8.3 and 13.1.2)."""

import re
from collections.abc import Sequence
from email.message import Message
from typing import Final

VARY: Final = {"Vary": "Accept"}
"""The header of a response whose format depends on ``Accept``."""

_ETAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type of ``offered`` that ``accept`` gives the highest weight.

    The first offer wins ties. It is also used when none is acceptable: a usable answer is better than a 406.
    """
    ranges = [_weighted(part) for part in (accept or "*/*").split(",")]
    weights = [_weight(media_type, ranges) for media_type in offered]
    return offered[weights.index(max(weights))]


def media_type(content_type: str) -> str:
    """Return the lower-case type of a ``Content-Type`` header without its parameters: ``application/json``."""
    message = Message()
    message["content-type"] = content_type
    return message.get_content_type()


def none_match(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client's copy is out of date, by weak comparison: False means 304."""
    if if_none_match is None:
        return True
    if if_none_match.strip() == "*":
        return False
    return etag.removeprefix("W/") not in _ETAG.findall(if_none_match)


def _weighted(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            return media_range.lower(), _quality(value.strip())
    return media_range.lower(), 1.0


def _quality(value: str) -> float:
    # A malformed weight counts as 0, "not acceptable".
    return float(value) if re.fullmatch(r"[01](\.[0-9]{0,3})?", value, re.ASCII) else 0.0


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the weight of the most specific range that covers ``media_type``; 0 when none does."""
    wildcard = media_type.partition("/")[0] + "/*"
    # From the most specific range to the least.
    for candidate in (media_type, wildcard, "*/*"):
        for media_range, weight in ranges:
            if media_range == candidate:
                return weight
    return 0.0
