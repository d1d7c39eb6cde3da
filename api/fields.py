"""Converting validation errors to the fields of a problem: the place, the fault and the remedy, never the value."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from api.field_names import looks_like_field_name
from api.places import Place
from jobs.kit.errors import MAX_FIELDS, FieldError
from quant_engine.policy import HubDataset, ModelReference, Policy
from quant_engine.policy.nearest import nearest
from quant_engine.policy.wording import TYPES, fault, one_of

_TAGS: Final = ("union_tag_invalid", "union_tag_not_found")
_PATH: Final = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|.*\\|.*\.(safetensors|gguf|bin|pt)\Z|.*/.*/", re.ASCII | re.DOTALL)
_NUMBER: Final = re.compile(r"-?[0-9.]{1,30}(e-?[0-9]{1,3})?", re.ASCII)
_MODEL_EXAMPLE: Final = 'Send {"source": "hub", "id": "owner/name"}, or {"source": "local", "id": "name"}.'
_A_PRESET: Final = 'Send {"preset": "w4a16"}, for example; GET /v1/presets lists the names.'
_A_HUB_DATASET: Final = (
    "A string is the name of a data set that GET /v1/capabilities lists, not a path. A data set of the Hub is "
    '{"hub": "owner/name"}; a text of your own is {"texts": ["…"]}.'
)
_NOT_A_PATH: Final = (
    "This looks like a path. An id is a name, not a path. A local model is a directory under the operator's "
    'QUANTRY_MODELS_DIR: send {"source": "local", "id": "<its name there>"}; GET /v1/capabilities lists them.'
)


@dataclass
class _Found:
    """Where an error is: the steps that exist in the body, the value there, and what the types know of the place."""

    steps: list[str]
    value: object
    place: Place
    is_hidden: bool = False

    @property
    def pointer(self) -> str:
        return "".join(f"/{step}" for step in self.steps)


def body_errors(
    errors: Iterable[Mapping[str, Any]], body: object, model: type[BaseModel] | None = None
) -> tuple[FieldError, ...]:
    """Return what does not fit in a body, by JSON pointer: each place and code once, and at most 50 entries.

    Args:
        errors: ``ValidationError.errors()``, with their context.
        body: the validated value, which separates keys from union tags.
        model: the type of the body, which knows the names of fields and the alternatives of a place.
    """
    fields: dict[tuple[str, str], FieldError] = {}
    for error in errors:
        found = _found(error, body, Place.of(model) if model else Place(()))
        key = (found.pointer, str(error["type"]))
        # The sentence is only made for errors that are reported.
        if key not in fields:
            fields[key] = FieldError(*key, _begun(_body_fault(error, found)))
        if len(fields) == MAX_FIELDS:
            break
    return _without_followers(tuple(fields.values()))


def parameter_errors(errors: Iterable[Mapping[str, Any]]) -> tuple[FieldError, ...]:
    """Return what does not fit in the query, path or headers, by parameter name: ``?limit``."""
    return tuple(
        FieldError(f"?{error['loc'][-1]}", str(error["type"]), sentence(error, error.get("input"))) for error in errors
    )


def sentence(error: Mapping[str, Any], value: object = None) -> str:
    """Return what one error says, without knowing its place; ``value`` is for finding the nearest choice."""
    return _begun(fault(error, value))


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _body_fault(error: Mapping[str, Any], found: _Found) -> str:
    kind = str(error["type"])
    if kind == "extra_forbidden":
        return _unknown_field(error["loc"][-1], found.place.fields)
    if kind in _TAGS:
        return _kind_fault(found)
    if kind in TYPES:
        return _type_fault(error, found)
    if kind == "string_pattern_mismatch" and found.steps[-2:] == ["model", "id"] and _is_path(found.value):
        return _NOT_A_PATH
    if kind == "string_pattern_mismatch" and HubDataset in found.place.alternatives:
        return f"{fault(error, found.value)} {_A_HUB_DATASET}"
    return fault(error, found.value)


def _unknown_field(name: object, known: tuple[str, ...]) -> str:
    meant = nearest(name, known) if isinstance(name, str) else None
    if meant is not None:
        return f"unknown field; did you mean `{meant}`?"
    listed = f" Known here: {', '.join(known)}." if known else " This object takes no fields."
    return f"unknown field. Remove it.{listed}"


def _kind_fault(found: _Found) -> str:
    # The error of a union is at the object; the pointer leads to the field that is wrong.
    if found.steps[-1:] == ["kind"]:
        return one_of(found.place.kinds, found.value)
    return f"must be an object whose `kind` is {one_of(found.place.kinds).removeprefix('must be ')}"


def _type_fault(error: Mapping[str, Any], found: _Found) -> str:
    kind = str(error["type"])
    needed = found.place.in_words() if kind != "int_from_float" else ""
    if ModelReference in found.place.alternatives:
        return f"must be {needed}. {_MODEL_EXAMPLE}"
    if Policy in found.place.alternatives and isinstance(found.value, str):
        return f"must be {needed}; this is text. {_A_PRESET}"
    return f"must be {needed or TYPES[kind]}; this is {_class_of(found.value)}.{_remedy(found.value, needed)}"


def _remedy(value: object, needed: str) -> str:
    if value is None:
        # Which fields have a default is not known here.
        return " Give a value; a field that has a default may be left out."
    if "number" in needed and isinstance(value, str) and _NUMBER.fullmatch(value):
        return " Write it without quotes."
    if needed.startswith("a list") and not isinstance(value, list | dict):
        return " Put it in square brackets."
    return ""


def _class_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def _is_path(value: object) -> bool:
    return isinstance(value, str) and _PATH.match(value[:4096]) is not None


def _places_above(pointer: str) -> Iterator[str]:
    while pointer:
        pointer = pointer.rpartition("/")[0]
        yield pointer


def _without_followers(fields: tuple[FieldError, ...]) -> tuple[FieldError, ...]:
    """Leave out what only follows from other errors.

    A list is called too short if its entries were refused. Of a choice of types each refuses the value: the type that
    it has tells the fault, and of several other types one sentence names all.
    """
    above = {place for field in fields for place in _places_above(field.pointer)}
    told = {field.pointer for field in fields if field.code not in TYPES}
    kept = []
    for field in fields:
        if field.code in TYPES:
            if field.pointer in told:
                continue
            told.add(field.pointer)
        elif field.code == "too_short" and field.pointer in above:
            continue
        kept.append(field)
    return tuple(kept)


def _found(error: Mapping[str, Any], body: object, place: Place) -> _Found:
    """Follow a location as far as it exists in the body, without union tags, and not beyond an unsafe key."""
    found = _Found([], body, place)
    for step in error["loc"]:
        _follow(found, step)
        if found.is_hidden:
            break
    kind, last = error["type"], error["loc"][-1] if error["loc"] else None
    # A missing field does not exist in the body, so it was not followed.
    if kind == "missing" and last is not None and not found.is_hidden:
        found.steps.append(str(last))
    elif kind == "extra_forbidden":
        found.place = _place_of(error["loc"][:-1], body, place)
    elif kind in _TAGS and isinstance(found.value, dict) and "kind" in found.value:
        found.steps.append("kind")
        found.value = found.value["kind"]
    return found


def _follow(found: _Found, step: str | int) -> None:
    here = found.value
    in_object = isinstance(here, dict) and step in here
    if not in_object and not (isinstance(here, list) and isinstance(step, int) and step < len(here)):
        found.place = found.place.tagged(step)
        return
    found.value = here[step]  # type: ignore[index] # one of the two, as was just checked
    found.place = found.place.member(step)
    if in_object and not looks_like_field_name(step):
        found.is_hidden = True
        return
    found.steps.append(str(step))


def _place_of(location: Iterable[str | int], body: object, place: Place) -> Place:
    found = _Found([], body, place)
    for step in location:
        _follow(found, step)
    return found.place
