"""Cursors come back as they went, and nothing else is taken for one."""

import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.kit import cursors
from jobs.kit.errors import InvalidQuery

MOMENTS = st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 — hypothesis adds it
NUMBERS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53))


@given(MOMENTS, st.text(alphabet=string.ascii_lowercase + "_", min_size=1))
def test_a_job_cursor_is_exact(created_at: datetime, job_id: str) -> None:
    assert cursors.decode_job(cursors.encode_job(created_at, job_id)) == (created_at, job_id)


@given(NUMBERS, st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1))
def test_a_layer_cursor_is_exact(value: float | None, name: str) -> None:
    cursor = cursors.encode_layer("-error", value, name)
    assert cursor.isascii()
    assert cursors.decode_layer(cursor, "-error") == (value, name)
    with pytest.raises(InvalidQuery):
        cursors.decode_layer(cursor, "error")


@given(st.one_of(st.text(), st.text(alphabet=string.ascii_letters + string.digits + "-_")))
def test_other_text_is_refused_and_nothing_else_raised(text: str) -> None:
    with pytest.raises(InvalidQuery):
        cursors.decode_job(text)
    with pytest.raises(InvalidQuery):
        cursors.decode_layer(text, "error")


@pytest.mark.parametrize("value", ["true", "NaN", "Infinity", "1e999", "1" + "0" * 400, "[]", '"1"'])
def test_only_numbers_that_a_column_can_hold_are_taken(value: str) -> None:
    forged = cursors.base64.urlsafe_b64encode(f'["error",{value},"n"]'.encode()).decode().rstrip("=")
    with pytest.raises(InvalidQuery):
        cursors.decode_layer(forged, "error")


def test_deep_nesting_is_refused() -> None:
    forged = cursors.base64.urlsafe_b64encode(b"[" * 100_000).decode()
    with pytest.raises(InvalidQuery):
        cursors.decode_job(forged)
