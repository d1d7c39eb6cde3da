"""The budget of a JSON text: measured before it is parsed, never by more than the text holds, and never by less."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from api import openapi
from api.errors import BodyTooComplex, MalformedJson
from api.json_text import SMALL_BUDGET, TEXT_BUDGET, JsonBudget, parse_json
from api.main import create_app

_TINY = JsonBudget(nodes=20, items=8, characters=10)


@pytest.mark.parametrize(
    "fits",
    [
        b"[1,2,3,4,5,6,7,8]",
        b'["0123456789"]',
        b'["\\",\\",[[{{::"]',
        b'["\\\\","\\\\\\"","\\\\\\\\"]',
        b'{"a,b:[{": "c,d:[{"}',
        b"[" * 15 + b"]" * 15,
        ('["' + "\U0001f600" * 10 + '"]').encode(),
    ],
)
def test_what_fits_a_budget_is_parsed(fits: bytes) -> None:
    assert parse_json(fits, _TINY) == json.loads(fits)


@pytest.mark.parametrize(
    "over",
    [
        b"[1,2,3,4,5,6,7,8,9]",
        b'["01234567890"]',
        b"[[1,2,3,4,5,6,7],[1,2,3,4,5,6,7],[1,2,3,4,5,6,7]]",
        b'{"a":' * 11 + b"1" + b"}" * 11,
        b'"' * 50,
        b"[" * 50,
        b"]" * 50,
        b'["\\\\",1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"\\\\"]',
    ],
)
def test_what_is_over_a_budget_is_refused(over: bytes) -> None:
    with pytest.raises(BodyTooComplex):
        parse_json(over, _TINY)


def test_depth_and_members_have_one_limit_for_all() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32)
    with pytest.raises(BodyTooComplex, match="32 levels"):
        parse_json(b"[" * 33 + b"]" * 33)
    members = [f'"k{index}":1' for index in range(257)]
    assert len(parse_json(f"{{{','.join(members[:256])}}}".encode())) == 256  # type: ignore[arg-type] # an object
    with pytest.raises(BodyTooComplex, match="256 members"):
        parse_json(f"{{{','.join(members)}}}".encode())


def test_numbers_are_as_long_as_anyone_needs() -> None:
    assert parse_json(b"[" + b"7" * 1000 + b"]") == [int("7" * 1000)]
    for number in (b"7" * 1001, b"-" + b"1234567890" * 101, b"0." + b"3" * 5000, b"1" * 100_000):
        with pytest.raises(MalformedJson, match="too long"):
            parse_json(b"[" + number + b"]")
    assert parse_json(b'["' + b"7" * 5000 + b'"]') == ["7" * 5000], "digits of a string are no number"


_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.text(alphabet='"\\[]{},:019'))
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(alphabet='"\\,[a'), inner, max_size=4)
    ),
    max_leaves=20,
)


def _nodes(value: Any) -> int:
    """Values and keys, counted on the parsed value."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(_nodes, value.values()))
    return 1 + sum(map(_nodes, value)) if isinstance(value, list) else 1


@settings(max_examples=150, deadline=None)
@given(value=_values, spaced=st.booleans(), escaped=st.booleans())
def test_the_measure_counts_what_the_parser_makes(value: Any, spaced: bool, escaped: bool) -> None:
    separators = (" , ", " : ") if spaced else (",", ":")
    raw = json.dumps(value, separators=separators, ensure_ascii=escaped).encode("utf-8", "replace")
    count = _nodes(value)
    assert parse_json(raw, JsonBudget(nodes=2 * count, items=4, characters=10_000)) == json.loads(raw)
    if count > 2:
        with pytest.raises(BodyTooComplex):
            parse_json(raw, JsonBudget(nodes=(count - 1) // 2, items=4, characters=10_000))


@pytest.mark.parametrize("budget", [SMALL_BUDGET, TEXT_BUDGET])
@pytest.mark.parametrize("unit", [b'"', b"\\", b'\\"', b"\\\\", b"[", b"]", b",", b"9", b'"a":', b'""', b"\xff", b" "])
def test_a_measure_takes_no_time(unit: bytes, budget: JsonBudget) -> None:
    raw = unit * ((8 << 20) // len(unit))
    began = time.process_time()
    with pytest.raises(MalformedJson):
        parse_json(raw, budget)
    assert time.process_time() - began < 0.5


def _sequences(schema: Any) -> Any:
    """Every schema of a list, a tuple or a set inside a core schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "tuple", "set", "frozenset"):
            yield schema
        for value in schema.values():
            yield from _sequences(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _sequences(value)


def test_a_list_of_a_request_is_refused_at_its_first_wrong_entry() -> None:
    """Otherwise every wrong entry becomes an error, before all but 50 are dropped."""
    create_app()  # its endpoints register their bodies
    bodies: list[type[BaseModel]] = [model for model in openapi._bodies if model is not openapi.ProblemDocument]
    assert {"JobRequest", "NewWebhook", "WebhookChanges"} <= {model.__name__ for model in bodies}
    for model in bodies:
        found = list(_sequences(TypeAdapter(model).core_schema))
        assert [schema for schema in found if not schema.get("fail_fast")] == [], model.__name__
        # A length that nothing limits is limited by the budget alone.
        assert [schema for schema in found if "max_length" not in schema] == [], model.__name__
