"""Parsing strict JSON within a budget.

The text is measured before it is parsed: a few bytes of JSON become hundreds of bytes of objects, and every wrong value
becomes an error. The measure takes a few passes over the bytes, none of which looks at single bytes in Python.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from api.errors import BodyTooComplex, MalformedJson

_MAX_DEPTH: Final = 32
_MAX_MEMBERS: Final = 256
_MAX_DIGITS: Final = 1000
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
_BEFORE_A_VALUE: Final = (b",", b":", b"[", b"{")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, kw_only=True)
class JsonBudget:
    """How much JSON a text may hold.

    Attributes:
        nodes: values and keys together; each comma, colon and opening bracket counts as one.
        items: the length of the longest list.
        characters: the length of the longest string.
    """

    nodes: int
    items: int
    characters: int


SMALL_BUDGET: Final = JsonBudget(nodes=10_000, items=4096, characters=256 << 10)
TEXT_BUDGET: Final = JsonBudget(nodes=120_000, items=16_384, characters=4 << 20)
"""For requests that carry text: up to 4096 documents, or conversations of several messages."""


def parse_json(raw: bytes, budget: JsonBudget = TEXT_BUDGET) -> object:
    """Parse one interoperable JSON value as RFC 8259 describes it: no NaN, no overflow, no key twice in an object.

    Raises:
        MalformedJson: its message has the kind and the place of the error, and nothing of what was sent.
        BodyTooComplex: the text is over the budget, or has more than 32 levels or 256 members in an object.
    """
    _measure(raw, budget)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8. Encode the JSON text as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(
            f"The body is not JSON (line {error.lineno}, column {error.colno}). Send one JSON object."
        ) from None
    _check_lengths(value, budget)
    return value


def _measure(raw: bytes, budget: JsonBudget) -> None:
    """Check the number of values and their nesting, before anything is parsed.

    What counts is right up to the first error of the text, and the parser does not read beyond it.
    """
    # Without escapes, each quotation mark begins or ends a string. Escaped backslashes go first, so that the second
    # one of a pair is not taken for the beginning of an escape.
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * budget.nodes:
        raise BodyTooComplex(f"The JSON has more than {budget.nodes} values. Send fewer.")
    outside = b"".join(unescaped.split(b'"')[::2])
    # Closing brackets are counted by themselves, for the loop below: a malformed text may have more of them.
    if max(sum(map(outside.count, _BEFORE_A_VALUE)), sum(map(outside.count, (b"]", b"}")))) > budget.nodes:
        raise BodyTooComplex(f"The JSON has more than {budget.nodes} values. Send fewer.")
    # Reading an integer takes time in the square of its length.
    if b"0" * (_MAX_DIGITS + 1) in outside.translate(_DIGITS):
        raise MalformedJson("The JSON holds a number that is too long. Use a smaller one.")
    depth = 0
    for bracket in outside.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MAX_DEPTH:
            raise BodyTooComplex(f"The JSON is nested more than {_MAX_DEPTH} levels deep. Flatten it.")


def _check_lengths(value: Any, budget: JsonBudget) -> None:
    waiting = [value]
    while waiting:
        here = waiting.pop()
        # The parser makes no subclasses, and their exact types are compared faster.
        kind = type(here)
        if kind is str and len(here) > budget.characters:
            raise BodyTooComplex(f"A string of the JSON has more than {budget.characters} characters. Shorten it.")
        if kind is list:
            if len(here) > budget.items:
                raise BodyTooComplex(f"A list of the JSON has more than {budget.items} entries. Send fewer.")
            waiting += here
        elif kind is dict:
            waiting += here.values()


def _refuse_constant(_name: str) -> NoReturn:
    raise MalformedJson("NaN and Infinity are not JSON. Use a finite number.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedJson("The JSON holds a number beyond the range of a 64-bit float. Use a smaller one.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MAX_MEMBERS:
        raise BodyTooComplex(f"An object of the JSON has more than {_MAX_MEMBERS} members. Send fewer.")
    members = dict(pairs)
    # json.loads would silently use the last value of a repeated key.
    if len(members) < len(pairs):
        raise MalformedJson("An object of the JSON has the same key twice. Give each key once.")
    return members
