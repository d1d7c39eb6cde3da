"""Text that others wrote does not become markup."""

import json
import math

import pytest

from quant_engine.checkpoint.markdown import code, code_cell, json_block, number, plain, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SmolLM2-135M", "SmolLM2-135M"),
        ("a_b*c*", "a\\_b\\*c\\*"),
        ("[x](http://e.org)", "\\[x\\](http://e.org)"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("one\n# two\r\n\tthree", "one # two three"),
        ("a|b`c`\\", "a\\|b\\`c\\`\\\\"),
        ("right\u202eleft\x1b[31m\x00", "rightleft\\[31m"),
    ],
)
def test_plain_text_is_only_letters(text: str, expected: str) -> None:
    assert plain(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "`a_b`"),
        ("a`b", "``a`b``"),
        ("``x``", "``` ``x`` ```"),
        ("a\n\n# b", "`a # b`"),
        ("", "—"),
    ],
)
def test_code_is_fenced_by_more_backticks_than_it_has(text: str, expected: str) -> None:
    assert code(text) == expected


def test_a_bar_does_not_end_a_cell() -> None:
    assert code_cell("a|b") == "`a\\|b`"
    assert table(("x", "y"), [("1", "2")], right=(1,)) == "| x | y |\n| --- | ---: |\n| 1 | 2 |"


def test_a_string_can_not_close_the_fence_of_json() -> None:
    value = {"match": "x\n```\n# mine", "html": "<b>", "text": "\u202eé"}
    block = json_block(value)
    lines = block.splitlines()
    assert block.count("```") == 2
    assert block.isascii()
    assert json.loads("\n".join(lines[1:-1])) == value


def test_numbers_without_a_value_are_a_dash() -> None:
    assert [number(value) for value in (None, math.nan, math.inf)] == ["—"] * 3
    assert [number(1234.56789), number(0.5), number(34.56789, 6)] == ["1235", "0.5", "34.5679"]
