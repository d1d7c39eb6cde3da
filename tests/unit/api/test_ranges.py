"""Range and If-Range against the cases of RFC 9110, section 14, and against slicing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.artifacts.ranges import ByteRange, RangeNotSatisfiable, range_applies, requested_range

_SIZE = 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-499", ByteRange(0, 500)),
        ("bytes=500-", ByteRange(500, 1000)),
        ("bytes=-100", ByteRange(900, 1000)),
        ("bytes=-5000", ByteRange(0, 1000)),
        ("bytes=990-5000", ByteRange(990, 1000)),
        ("bytes=999-999", ByteRange(999, 1000)),
        ("Bytes= 0-0 ", ByteRange(0, 1)),
    ],
)
def test_single_ranges(header: str, expected: ByteRange) -> None:
    assert requested_range(header, _SIZE) == expected


@pytest.mark.parametrize(
    "header",
    [
        None,
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-2", "bytes=0-1,5-6", "lines=0-5", "bytes=0x1-2"),
        *("bytes=٣-٤", "bytes=0-" + "9" * 40),
    ],
)
def test_what_is_malformed_or_multiple_means_the_whole_file(header: str | None) -> None:
    assert requested_range(header, _SIZE) is None


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-1001", "bytes=-0"])
def test_unsatisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        requested_range(header, _SIZE)


def test_an_empty_file_has_no_suffix_but_is_whole() -> None:
    assert requested_range("bytes=-5", 0) is None
    with pytest.raises(RangeNotSatisfiable):
        requested_range("bytes=0-", 0)


@given(st.binary(min_size=1, max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_the_slice(content: bytes, first: int, extra: int) -> None:
    expected = content[first : first + extra + 1]
    if not expected:
        with pytest.raises(RangeNotSatisfiable):
            requested_range(f"bytes={first}-{first + extra}", len(content))
        return
    part = requested_range(f"bytes={first}-{first + extra}", len(content))
    assert part is not None
    assert content[part.start : part.stop] == expected
    assert part.content_range(len(content)) == f"bytes {first}-{first + len(expected) - 1}/{len(content)}"


def test_if_range_takes_only_the_exact_strong_etag() -> None:
    assert range_applies(None, '"abc"')
    assert range_applies('"abc"', '"abc"')
    assert not range_applies('W/"abc"', '"abc"')
    assert not range_applies('"other"', '"abc"')
    assert not range_applies("Sat, 29 Oct 1994 19:43:31 GMT", '"abc"')
