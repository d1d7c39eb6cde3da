"""Finding the place of an error in the types of a body: what a value may be there, and which names are known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

_LISTS: Final = (tuple, list, set, frozenset, Sequence)
_OBJECTS: Final = (dict, Mapping)
_SIMPLE: Final[dict[Any, str]] = {
    str: "text",
    SecretStr: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


@dataclass(frozen=True)
class Place:
    """A place of a body: the types that a value may have there, of which each is one alternative.

    A place without alternatives is unknown: it is inside something that the types do not have.
    """

    alternatives: tuple[Any, ...]

    @classmethod
    def of(cls, annotation: Any) -> "Place":
        """Return the place of a value of this type."""
        return cls(tuple(dict.fromkeys(_alternatives(annotation))))

    def member(self, step: str | int) -> "Place":
        """Return the place of a field, a value of an object or an entry of a list."""
        found: list[Any] = []
        for alternative in self.alternatives:
            found += _alternatives_below(alternative, step)
        return Place(tuple(dict.fromkeys(found)))

    def tagged(self, tag: object) -> "Place":
        """Return the alternatives that a union's tag chooses, a ``kind`` or the name of a type; all, if none has it."""
        chosen = tuple(each for each in self.alternatives if _is_model(each) and tag in (each.__name__, _kind(each)))
        return Place(chosen) if chosen else self

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of fields that are known here."""
        return tuple(dict.fromkeys(name for each in self.alternatives if _is_model(each) for name in each.model_fields))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The values of ``kind`` that are known here."""
        return tuple(str(_kind(each)) for each in self.alternatives if _is_model(each) and _kind(each) is not None)

    def in_words(self) -> str:
        """Return what a value must be here: ``text, or an object with `texts```; empty where that is unknown."""
        return ", or ".join(dict.fromkeys(_in_words(each) for each in self.alternatives))


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    else:
        yield annotation


def _alternatives_below(alternative: Any, step: str | int) -> Iterator[Any]:
    origin, arguments = get_origin(alternative), get_args(alternative)
    if _is_model(alternative) and step in alternative.model_fields:
        yield from _alternatives(alternative.model_fields[step].annotation)
    elif origin in _LISTS and isinstance(step, int) and arguments:
        yield from _alternatives(arguments[0])
    elif origin in _OBJECTS and len(arguments) == 2:
        yield from _alternatives(arguments[1])


def _in_words(alternative: Any) -> str:
    origin = get_origin(alternative)
    if origin is Literal:
        return _one_of([str(each) for each in get_args(alternative)])
    if origin in _LISTS:
        return "a list"
    if origin in _OBJECTS:
        return "an object"
    if _is_model(alternative):
        names = [f"`{name}`" for name, field in alternative.model_fields.items()]
        return f"an object with {', '.join(names)}" if names else "an empty object"
    if isinstance(alternative, type) and issubclass(alternative, Enum):
        return _one_of([str(each.value) for each in alternative])
    return _SIMPLE.get(alternative, "another value")


def _one_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _is_model(alternative: Any) -> bool:
    return isinstance(alternative, type) and issubclass(alternative, BaseModel)


def _kind(model: Any) -> object:
    field = model.model_fields.get("kind")
    return None if field is None else field.default
