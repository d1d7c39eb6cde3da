"""Number formats that exist in one test only."""

from dataclasses import replace
from typing import Any

from quant_engine.policy import NumberFormat


def made_up_format(value: str, like: NumberFormat, **fields: Any) -> NumberFormat:
    """A format whose row is that of ``like`` with other ``fields``; no table knows it."""
    member = str.__new__(NumberFormat, value)
    member._value_ = value
    member._name_ = value.upper()
    member.spec = replace(like.spec, **fields)
    return member
