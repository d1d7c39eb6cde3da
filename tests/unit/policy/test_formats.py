"""Every number format has a whole row, and a row that is not whole or contradicts itself can not be made."""

import re
from dataclasses import fields, replace
from typing import Any

import pytest

from quant_engine.policy import FormatSpec, NumberFormat, PolicyError, WeightQuantization, float_format, in_words
from quant_engine.policy.resolve import resolve_policy
from quant_engine.policy.types import Policy

_ROWS = {
    "int2": (2, False, None),
    "int3": (3, False, None),
    "int4": (4, False, None),
    "int5": (5, False, None),
    "int6": (6, False, None),
    "int7": (7, False, None),
    "int8": (8, False, None),
    "fp8": (8, True, None),
    "nvfp4": (4, True, 16),
    "mxfp4": (4, True, 32),
    "none": (None, False, None),
}


def test_every_format_has_the_row_of_its_name() -> None:
    found = {each.value: (each.bits, each.is_float, each.group_size) for each in NumberFormat}
    assert found == _ROWS
    for each in NumberFormat:
        assert isinstance(each.spec, FormatSpec)
        assert each.quantizes == (each.value != "none")
        assert each.is_integer == each.value.startswith("int")
        assert (each.spec.schemes is None) == (each.spec.layout is None) == (not each.quantizes)
        assert NumberFormat(each.value) is each


@pytest.mark.parametrize("field", [each.name for each in fields(FormatSpec)])
def test_no_field_of_a_row_can_be_left_out(field: str) -> None:
    row = {each.name: getattr(NumberFormat.MXFP4.spec, each.name) for each in fields(FormatSpec)}
    assert FormatSpec(**row) == NumberFormat.MXFP4.spec
    del row[field]
    with pytest.raises(TypeError, match=field):
        FormatSpec(**row)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layout": None}, "layout None"),
        ({"bits": None}, "bits is None"),
        ({"bits": 1}, "bits is 1"),
        ({"bits": 9}, "bits is 9"),
        ({"group_size": None}, "group_size is None, strategy group"),
        ({"strategy": None}, "group_size is 32, strategy None"),
        ({"is_float": False}, "group_size is 32; integers"),
        ({"static_peak": True}, "static_peak is True with strategy group"),
        ({"strategy": "tensor_group"}, "static_peak is False with strategy tensor_group"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        replace(NumberFormat.MXFP4.spec, **changed)


def test_a_format_of_its_own_groups_is_whole_without_them() -> None:
    for each in NumberFormat:
        found = WeightQuantization.model_validate({"format": each.value})
        assert found.group_size == each.group_size
        assert found.granularity == ("channel" if each.group_size is None else "group")


def test_float_formats_are_found_by_width_and_groups() -> None:
    for each in NumberFormat:
        if each.is_float:
            assert float_format(each.bits or 0, each.group_size) is each
    assert float_format(8, 32) is None
    assert float_format(6, None) is None


def test_messages_list_the_formats_there_are() -> None:
    assert in_words([NumberFormat.INT4]) == "int4"
    assert in_words([NumberFormat.INT4, NumberFormat.FP8]) == "int4 or fp8"
    with pytest.raises(PolicyError) as caught:
        resolve_policy(Policy(weights=WeightQuantization(format=NumberFormat.NONE)))
    for each in NumberFormat:
        assert each.value in caught.value.detail
