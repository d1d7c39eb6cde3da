"""Whatever a runner reports becomes JSON that PostgreSQL stores."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.kit.storable import is_storable, storable_json, storable_text

ANY_TEXT = st.text(st.characters())
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(ANY_TEXT, inner)),
)


@given(ANY_JSON)
def test_the_result_is_strict_json_without_nul_or_surrogates(value: Any) -> None:
    text = json.dumps(storable_json(value), allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode("utf-8")


@given(ANY_JSON)
def test_cleaning_twice_is_cleaning_once(value: Any) -> None:
    once = storable_json(value)
    assert storable_json(once) == once


def test_clean_values_stay_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True, "é😀"], "b": {"c": "d"}}
    assert storable_json(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_null(value: float) -> None:
    assert storable_json([value]) == [None]


def test_other_objects_become_text_and_tuples_lists() -> None:
    assert storable_json((Path("/x"), 1)) == ["/x", 1]


def test_long_text_is_cut_with_a_mark() -> None:
    cut = storable_text("x" * 30_000)
    assert len(cut) == 20_000
    assert cut.endswith("…")
    assert not is_storable("a\x00")
    assert is_storable("plain")
