"""Bodies: capped while they stream, strict JSON, and problems that point without repeating."""

import json
from collections.abc import Iterable
from typing import Any

import anyio
import pytest
from starlette.requests import Request

from api.body import read_body, require_json, validate
from api.errors import InvalidFields, MalformedJson, UnsupportedMediaType
from api.json_text import parse_json
from jobs.kit.errors import BodyTooLarge
from quant_engine.policy import JobRequest

_SECRET = "hf_VerySecretToken123"  # noqa: S105 - sent to see that it does not come back


class Sender:
    """An ASGI ``receive`` that hands out chunks and remembers how many were taken."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = list(chunks)
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        body = self.chunks[self.taken]
        self.taken += 1
        return {"type": "http.request", "body": body, "more_body": self.taken < len(self.chunks)}


def _request(sender: Sender, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, sender)


def test_a_body_at_the_limit_is_read() -> None:
    assert anyio.run(read_body, _request(Sender([b"12345", b"67890"])), 10) == b"1234567890"


def test_a_body_without_length_is_cut_off_while_it_streams() -> None:
    sender = Sender([b"x" * 6] * 1000)
    with pytest.raises(BodyTooLarge):
        anyio.run(read_body, _request(sender), 10)
    assert sender.taken == 2


@pytest.mark.parametrize("length", ["11", "9" * 30])
def test_an_announced_length_is_believed_before_anything_is_read(length: str) -> None:
    sender = Sender([b"x"])
    with pytest.raises(BodyTooLarge):
        anyio.run(read_body, _request(sender, content_length=length), 10)
    assert sender.taken == 0


def test_a_length_that_lies_does_not_help() -> None:
    with pytest.raises(BodyTooLarge):
        anyio.run(read_body, _request(Sender([b"x" * 11]), content_length="3"), 10)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_taken(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        require_json(_request(Sender([]), content_type=content_type))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a": 1,}',
        b"[1] [2]",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"x": {"a": 1, "a": 1}}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda raw: raw[:12].decode("latin-1"),
)
def test_what_is_not_interoperable_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedJson):
        parse_json(raw)


def test_json_errors_say_where_and_repeat_nothing() -> None:
    with pytest.raises(MalformedJson) as caught:
        parse_json(b'{"token": "' + _SECRET.encode() + b'", oops}')
    assert "line 1, column" in caught.value.detail
    assert _SECRET not in caught.value.detail


def test_good_json_is_what_json_says() -> None:
    text = '{"a": [1, 2.5, -0.0, "ü\\u00e9", null, true, {"b": {}}]}'
    assert parse_json(text.encode()) == json.loads(text)


def _pointers(body: object) -> dict[str, str]:
    with pytest.raises(InvalidFields) as caught:
        validate(JobRequest, body)
    assert _SECRET not in repr([error.__dict__ for error in caught.value.errors]) + caught.value.detail
    return {error.pointer: error.code for error in caught.value.errors}


_MODEL = {"source": "local", "id": "tiny"}
_POLICY = {"preset": "w4a16"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"/model": "missing", "/policy": "missing"}),
        ({"model": {"source": "local"}, "policy": _POLICY}, {"/model/id": "missing"}),
        ({"model": {**_MODEL, "source": _SECRET}, "policy": _POLICY}, {"/model/source": "literal_error"}),
        (
            {"model": {**_MODEL, "credential": _SECRET}, "policy": _POLICY},
            {"/model/credential": "string_pattern_mismatch"},
        ),
        ({"model": _MODEL, "policy": {"wieghts": {}}}, {"/policy/wieghts": "extra_forbidden"}),
        ({"model": _MODEL, "policy": {"transform": {"statistic": {"q": 0.4}}}}, None),
        ({"model": _MODEL, "policy": {"targets": ["ok", 5]}}, {"/policy/targets/1": "string_type"}),
        ({"model": _MODEL, "policy": {"targets": ["a\x00b"]}}, {"/policy/targets/0": "value_error"}),
        ({"model": _MODEL, "policy": {"targets": ["\ud800"]}}, {"/policy/targets/0": "value_error"}),
        (
            {"model": _MODEL, "policy": _POLICY, "calibration": {"samples": 2**40}},
            {"/calibration/samples": "less_than_equal"},
        ),
        (
            {"model": _MODEL, "policy": _POLICY, "calibration": {"samples": True}},
            {"/calibration/samples": "int_type"},
        ),
        ([], {"": "model_type"}),
        (_SECRET, {"": "model_type"}),
        (None, {"": "model_type"}),
    ],
)
def test_pointers_lead_to_the_field(body: object, expected: dict[str, str] | None) -> None:
    found = _pointers(body)
    assert found == (expected or {"/policy/transform/statistic/q": "greater_than_equal"})


def test_union_branches_do_not_show_in_pointers() -> None:
    found = _pointers({"model": _MODEL, "policy": _POLICY, "calibration": {"dataset": {"texts": ["fine", 7]}}})
    assert set(found) == {"/calibration/dataset/texts/1"}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({}, {"/texts": "missing"}),
        ({"texts": ["a"], "hub": "owner/name"}, {"/texts": "extra_forbidden"}),
        ({"texts": ["a"], "messages": [[{"role": "user", "content": "x"}]]}, {"/texts": "extra_forbidden"}),
        ({"hub": "c4"}, {"/hub": "string_pattern_mismatch"}),
        ({"hub": "owner/na--me"}, {"/hub": "value_error"}),
        ({"hub": "owner/name", "split": "../x"}, {"/split": "string_pattern_mismatch"}),
        ({"hub": "owner/name", "subset": "en"}, {"/subset": "extra_forbidden"}),
        ({"messages": []}, {"/messages": "too_short"}),
        ({"messages": [[]]}, {"/messages/0": "too_short"}),
        ({"messages": [[{"role": "user"}]]}, {"/messages/0/0/content": "missing"}),
        ({"messages": [[{"role": "a user", "content": "x"}]]}, {"/messages/0/0/role": "string_pattern_mismatch"}),
        ({"messages": [[{"role": "user", "content": None}]]}, {"/messages/0/0/content": "string_type"}),
        (5, {"": "string_type"}),
    ],
)
def test_a_data_set_is_refused_in_the_form_that_it_has(dataset: object, expected: dict[str, str]) -> None:
    for field in ("calibration", "evaluation"):
        place = "/calibration/dataset" if field == "calibration" else "/evaluation/perplexity/dataset"
        body = {"dataset": dataset} if field == "calibration" else {"perplexity": {"dataset": dataset}}
        found = _pointers({"model": _MODEL, "policy": _POLICY, field: body})
        assert found == {place + pointer: code for pointer, code in expected.items()}


@pytest.mark.parametrize("key", ["max_run_secs", "wieghts", "l3"])
def test_misspelt_names_are_told(key: str) -> None:
    assert _pointers({"model": _MODEL, "policy": _POLICY, key: 1}) == {f"/{key}": "extra_forbidden"}


def test_keys_that_do_not_look_like_names_are_not_repeated() -> None:
    assert _pointers({"model": _MODEL, "policy": _POLICY, _SECRET: 1}) == {"": "extra_forbidden"}
    found = _pointers({"model": _MODEL, "policy": _POLICY, f"my {_SECRET} key": 1})
    assert found == {"": "extra_forbidden"}
    found = _pointers({"model": _MODEL, "policy": _POLICY, "metadata": {f"a b {_SECRET}": "x"}})
    assert set(found) == {"/metadata"}


def test_thousands_of_wrong_fields_give_fifty_errors() -> None:
    assert len(_pointers({"model": _MODEL, "policy": _POLICY, "calibration": {"dataset": {"texts": [1] * 4000}}})) <= 50
