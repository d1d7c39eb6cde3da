"""What a value must be, in plain words, for every kind of error that the validation of our types can raise.

Pydantic's own messages use Python's words ("valid tuple", "instance of ModelReference") and regular expressions.
Requests and settings are answered from this table instead. Nothing of the value is repeated.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from quant_engine.policy.nearest import nearest

_OWN_MESSAGE: Final = re.compile(r"^(Value|Assertion) error, ")
_CHOICE: Final = re.compile(r"'([^']*)'|(-?[0-9]+|True|False)")

_ID: Final = "letters, digits, '.', '_' and '-', and begins with a letter or a digit"
ALLOWED: Final[dict[str, str]] = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$": (
        f"name or owner/name, where each part has up to 96 {_ID}"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$": (
        f"owner/name, where each part has up to 96 {_ID}"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$": (
        "a branch, a tag or a commit: up to 128 letters, digits, '.', '_', '/' and '-', and begins with a letter or a "
        "digit"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": f"a name: up to 64 {_ID}",
    r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$": "the name of a configuration, as the Hub shows it: up to 128 letters, "
    "digits, '.', '_', '+' and '-', and begins with a letter or a digit",
    r"^[A-Za-z][A-Za-z0-9_-]{0,31}$": "a role such as user or assistant: up to 32 letters, digits, '_' and '-', and "
    "begins with a letter",
    r"^cred_[0-9a-f]{24}$": "the id of a stored credential: cred_ and 24 hexadecimal digits, as GET /v1/credentials "
    "lists it",
    r"^[A-Za-z0-9_.-]{1,64}$": "a label's name: up to 64 letters, digits, '_', '.' and '-'",
    r"^[A-Za-z0-9._/:-]{1,200}$": "a model's id, as a job shows it",
    r"^-?[a-z_]{1,40}$": "the name of a column, with '-' in front for the largest first",
    r"^[\x20-\x7e]{1,255}$": "1 to 255 printable ASCII characters",
    r"^[\x21-\x7e]{1,512}$": "the next_cursor of a page, unchanged",
    r"^https?://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._/-]*)?$": "an http:// or https:// address of a host, with a port and "
    "a path if needed, without a query",
}
"""What a pattern allows, in words that follow "must be". A test compares it with all patterns of requests."""

TYPES: Final[dict[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number, without a fraction",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "path_type": "the path of a file or a directory",
}
"""The errors that say that a value is of another type, and the type that is needed."""


def fault(error: Mapping[str, Any], value: object = None) -> str:
    """Return what the value must be and how to correct it, as a sentence that begins with a small letter.

    Args:
        error: one of ``ValidationError.errors()``, with its context.
        value: what was sent, from which the nearest choice is found; it is not repeated.
    """
    kind, context = str(error["type"]), error.get("ctx") or {}
    if kind in TYPES:
        return f"must be {TYPES[kind]}."
    words = _WORDS.get(kind)
    return words(context, value) if words else _own_message(error)


def choices(expected: str) -> tuple[str, ...]:
    """Return the words of a list as pydantic writes it: ``'none', 'inner' or 'all'``."""
    return tuple(quoted or plain for quoted, plain in _CHOICE.findall(expected))


def one_of(known: Iterable[str], value: object = None) -> str:
    """Return a sentence with the words that are allowed, and the one that ``value`` probably means."""
    listed = tuple(known)
    meant = nearest(value, listed) if isinstance(value, str) else None
    sentence = f"must be {listed[0]}." if len(listed) == 1 else f"must be one of {', '.join(listed)}."
    return f"{sentence} Did you mean {meant!r}?" if meant else sentence


def allowed(pattern: str) -> str:
    """Return what a field with this pattern must be."""
    return ALLOWED.get(pattern, "shorter, or of other characters: see /openapi.json for what this field takes")


def _own_message(error: Mapping[str, Any]) -> str:
    # Validators of our own have plain messages already. Any other message would be pydantic's.
    if str(error["type"]) in ("value_error", "assertion_error"):
        message = _OWN_MESSAGE.sub("", str(error["msg"]))
        return message if message.endswith((".", "?")) else f"{message}."
    return "does not fit here; see /openapi.json for what this field takes."


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _count(number: Any, value: object) -> str:
    # A text is checked by the same words as a list where a validator of ours comes first.
    one, more = ("character", "characters") if isinstance(value, str) else ("entry", "entries")
    return f"{number} {one if number == 1 else more}"


_Words = Callable[[Mapping[str, Any], object], str]
_WORDS: Final[dict[str, _Words]] = {
    "missing": lambda _context, _value: "this field is required. Add it.",
    "extra_forbidden": lambda _context, _value: "unknown field. Remove it.",
    "greater_than_equal": lambda context, _value: f"must be {_number(context['ge'])} or more.",
    "greater_than": lambda context, _value: f"must be more than {_number(context['gt'])}.",
    "less_than_equal": lambda context, _value: f"must be {_number(context['le'])} or less.",
    "less_than": lambda context, _value: f"must be less than {_number(context['lt'])}.",
    "string_too_short": lambda context, _value: f"must have {_count(context['min_length'], '')} or more.",
    "string_too_long": lambda context, _value: f"must have {_count(context['max_length'], '')} or fewer.",
    "too_short": lambda context, value: f"must have {_count(context['min_length'], value)} or more.",
    "too_long": lambda context, value: f"must have {_count(context['max_length'], value)} or fewer.",
    "string_pattern_mismatch": lambda context, _value: f"must be {allowed(str(context['pattern']))}.",
    "string_unicode": lambda _context, _value: "must be valid Unicode; remove lone surrogates.",
    "literal_error": lambda context, value: one_of(choices(str(context["expected"])), value),
    "enum": lambda context, value: one_of(choices(str(context["expected"])), value),
    "union_tag_invalid": lambda context, value: one_of(choices(str(context["expected_tags"])), value),
}
