"""What a wrong field is answered with: plain words for every kind of error that the types of requests can raise."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core._pydantic_core import list_all_errors

import api.deps
from api import openapi
from api.body import validate
from api.errors import InvalidFields
from api.fields import body_errors
from api.main import create_app
from api.places import Place
from jobs.settings import Settings
from quant_engine.policy import JobRequest
from quant_engine.policy.wording import _WORDS, ALLOWED, TYPES, allowed, fault

_MODEL: Final = {"source": "local", "id": "tiny"}
_BAD: Final = (
    None,
    True,
    -1,
    0,
    1.5,
    10**12,
    "",
    "zzzz",
    "zz\x00zz",
    "\ud800",
    "zz zz/" * 60,
    [],
    ["zzzz"],
    [[]],
    [None] * 65,
    {},
    {"zzzz": 1},
    {"kind": "zzzz"},
    {"kind": 5},
)
_PYTHON: Final = re.compile(
    r"Input should|valid (dict|tuple|list|string|integer|number|boolean)|instance of|tuple|dictionary|\bNone\b|\bstr\b"
    r"|\bint\b|\bbool\b|NoneType|\[A-Za|\^|\\|Tag |discriminator|Extra inputs|zzzz"
)
_TAGS: Final = {"union_tag_invalid", "union_tag_not_found"}


def _bodies(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Yield bodies with one wrong value each, at every place of the type."""
    for name, field in model.model_fields.items():
        for wrong in _values(Place.of(field.annotation)):
            yield {name: wrong}


def _values(place: Place) -> Iterator[Any]:
    yield from _BAD
    for alternative in place.alternatives:
        if isinstance(alternative, type) and issubclass(alternative, BaseModel):
            kind = alternative.model_fields.get("kind")
            for below in _bodies(alternative):
                yield {**({} if kind is None or kind.is_required() else {"kind": kind.default}), **below}
        elif get_origin(alternative) is tuple:
            yield from ([each] for each in _values(Place.of(get_args(alternative)[0])))


def _errors(model: type[BaseModel], body: object) -> list[dict[str, Any]]:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)  # type: ignore[return-value] # a TypedDict
    return []


def test_no_body_is_answered_in_pythons_words() -> None:
    kinds: set[str] = set()
    models = [model for model in openapi._bodies if model.__name__ != "Problem"]
    assert JobRequest in models
    for model in models:
        for body in (*_bodies(model), [], None, "zzzz", 5):
            errors = _errors(model, body)
            kinds |= {error["type"] for error in errors}
            for field in body_errors(errors, body, model):
                assert not _PYTHON.search(field.detail), (field, errors[:3])
                assert field.detail.endswith((".", "?")), field
                assert field.detail[0].isupper(), field
                assert "does not fit here" not in field.detail, (field, errors[:3])
                assert "of other characters" not in field.detail, (field, errors[:3])
    # Every kind that was met has words of its own, and the table has no kind that pydantic does not know.
    assert kinds <= {*TYPES, *_WORDS, *_TAGS, "value_error"}
    assert len(kinds) >= 18
    # Only types of the standard library, such as paths in settings, have kinds beyond the list.
    assert {*TYPES, *_WORDS} - {each["type"] for each in list_all_errors()} == {"path_type"}


def test_even_an_error_without_words_is_not_answered_in_pythons() -> None:
    for each in list_all_errors():
        context = each.get("example_context") or {}
        error = {"type": each["type"], "msg": each["example_message_python"], "ctx": context, "loc": ()}
        if each["type"] not in ("value_error", "assertion_error"):
            assert not re.search(r"Input|instance|valid (dict|tuple|str)", fault(error)), each["type"]


def test_every_pattern_of_requests_has_words(tmp_path: Path) -> None:
    document = json.dumps(create_app(Settings(data_dir=tmp_path)).openapi())
    patterns = {json.loads(f'"{each}"') for each in re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', document)}
    patterns |= set(re.findall(r'r"(\^[^"]*\$)"', Path(str(api.deps.__file__)).read_text()))
    assert len(patterns) >= 8
    assert {pattern for pattern in patterns if "of other characters" in allowed(pattern)} == set()
    assert not any(re.search(r"[\\^]|\[A", words) for words in ALLOWED.values())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"modle": _MODEL, "model": _MODEL}, {"/modle": "Unknown field; did you mean `model`?"}),
        ({"model": _MODEL, "policy": {"wieghts": 1}}, {"/policy/wieghts": "Unknown field; did you mean `weights`?"}),
        (
            {"model": _MODEL, "policy": {"training": {"kind": "block", "warmup": 5}}},
            {"/policy/training/warmup": "Unknown field. Remove it. Known here: kind, learn, steps"},
        ),
        (
            {"model": _MODEL, "My Field": 1},
            {"": "Unknown field. Remove it. Known here: model, policy"},
        ),
        ({"model": "owner/name"}, {"/model": 'Send {"source": "hub", "id": "owner/name"}'}),
        ({"model": {"id": "/data/x"}}, {"/model/id": "QUANTRY_MODELS_DIR"}),
        ({"model": {"id": "./x"}}, {"/model/id": "This looks like a path"}),
        ({"model": {"id": "C:\\x"}}, {"/model/id": "This looks like a path"}),
        ({"model": {"id": "~/x"}}, {"/model/id": "This looks like a path"}),
        ({"model": {"id": "x y"}}, {"/model/id": "Must be name or owner/name"}),
        (
            {"model": _MODEL, "policy": {"weights": {"format": "int44"}}},
            {"/policy/weights/format": "Did you mean 'int4'?"},
        ),
        (
            {"model": _MODEL, "policy": {"search": {"kind": "gird"}}},
            {"/policy/search/kind": "Must be one of grid, paper. Did you mean 'grid'?"},
        ),
        (
            {"model": _MODEL, "policy": {"search": "grid"}},
            {"/policy/search": "Must be an object whose `kind` is one of grid, paper."},
        ),
        (
            {"model": _MODEL, "policy": {"targets": "down_proj"}},
            {"/policy/targets": "Must be a list; this is text. Put it in square brackets."},
        ),
        (
            {"model": _MODEL, "calibration": {"samples": "256"}},
            {"/calibration/samples": "Must be a whole number; this is text. Write it without quotes."},
        ),
        (
            {"model": {"id": None}},
            {"/model/id": "this is null. Give a value; a field that has a default may be left out."},
        ),
        ({"model": _MODEL, "calibration": {"dataset": 5}}, {"/calibration/dataset": "Must be text, or an object with"}),
        ({"model": _MODEL, "calibration": {"dataset": "a b"}}, {"/calibration/dataset": "Must be a name: up to 64"}),
        (
            {"model": _MODEL, "calibration": {"dataset": "HuggingFaceH4/ultrachat_200k"}},
            {"/calibration/dataset": 'A data set of the Hub is {"hub": "owner/name"}'},
        ),
        ({"model": _MODEL, "policy": "w8a8"}, {"/policy": 'Send {"preset": "w4a16"}'}),
        ({"model": _MODEL, "policy": {"preset": "w" * 300}}, {"/policy/preset": "Must have 256 characters or fewer."}),
        ({"model": _MODEL, "policy": {"targets": [""]}}, {"/policy/targets/0": "Must have 1 character or more."}),
        ({"model": _MODEL, "policy": {"targets": []}}, {"/policy/targets": "Must have 1 entry or more."}),
    ],
)
def test_the_answer_names_what_is_needed_and_what_was_meant(body: dict[str, Any], told: dict[str, str]) -> None:
    body = {"policy": {"preset": "w8a8"}, **body}
    with pytest.raises(InvalidFields) as refused:
        validate(JobRequest, body)
    found = {error.pointer: error.detail for error in refused.value.errors}
    assert found.keys() == told.keys()
    for pointer, words in told.items():
        assert words in found[pointer]
