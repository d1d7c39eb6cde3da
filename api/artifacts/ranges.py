"""Reading which bytes of a file a request asks for: ``Range`` and ``If-Range`` (RFC 9110, 13.1.5 and 14)."""

import re
from dataclasses import dataclass

# At most 18 digits: a longer number is never a position in a file.
_SINGLE_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class ByteRange:
    """Bytes ``start`` up to, not including, ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """The number of bytes in the range."""
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """The ``Content-Range`` of this part of ``size`` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


class RangeNotSatisfiable(ValueError):
    """The range is well formed and is outside the file."""


def requested_range(header: str | None, size: int) -> ByteRange | None:
    """Return the one range that ``header`` asks for of a file of ``size`` bytes; None means the whole file.

    A header that is malformed, uses another unit or lists several ranges is ignored, as RFC 9110 section 14.2 allows.

    Raises:
        RangeNotSatisfiable: the range starts after the last byte, or is an empty suffix.
    """
    match = _SINGLE_RANGE.fullmatch(header) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        return _suffix(last, size)
    start = int(first)
    if last and int(last) < start:
        return None
    # The order matters: a range with its end before its start is malformed and ignored, not unsatisfiable.
    if start >= size:
        raise RangeNotSatisfiable
    return ByteRange(start, min(int(last) + 1, size) if last else size)


def range_applies(if_range: str | None, etag: str) -> bool:
    """Return whether ``Range`` applies: there is no ``If-Range``, or it names exactly this strong ``etag``.

    A date never matches: files are identified by their digest here, not by their modification time.
    """
    return if_range is None or if_range.strip() == etag


def _suffix(length: str, size: int) -> ByteRange | None:
    if not length or size == 0:
        return None
    if int(length) == 0:
        raise RangeNotSatisfiable
    # RFC 9110: a suffix that is longer than the file means the whole file.
    return ByteRange(max(size - int(length), 0), size)
