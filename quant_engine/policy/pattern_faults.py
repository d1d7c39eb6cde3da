"""What RE2 finds wrong with a regular expression, in words that repeat nothing of it."""

from typing import Final

TOO_LARGE: Final = "The pattern repeats too much. Use fewer or smaller repetitions, or write it as several entries."
_INSTEAD: Final = (
    "Correct the pattern, or name the linears by last components, whole names, or globs such as *.mlp.* instead."
)
_UNKNOWN: Final = "which is not known here, where every pattern is matched in linear time"

_SIZES: Final = ("invalid repetition size", "pattern too large", "expression nests too deeply")
_FAULTS: Final[dict[str, str]] = {
    "invalid escape sequence": "an escape that is not known",
    "invalid character class": "a set of characters that is not valid",
    "invalid character class range": "a set of characters whose range is not valid",
    "missing ]": "a '[' without its ']'",
    "missing )": "a '(' without its ')'",
    "unexpected )": "a ')' without its '('",
    "trailing \\": "a '\\' at the end, which escapes nothing",
    "no argument for repetition operator": "a repetition with nothing in front of it",
    "bad repetition operator": "a repetition right behind another, or a possessive one",
    "invalid named capture group": "a group whose name is not valid",
}
"""By the beginning of RE2's message; the rest of the message repeats a part of the pattern."""
_GROUPS: Final[dict[str, str]] = {
    "(?=": "a look-ahead",
    "(?!": "a look-ahead",
    "(?<=": "a look-behind",
    "(?<!": "a look-behind",
    "(?P=": "a back reference",
    "(?>": "an atomic group",
    "(?(": "a condition",
    "(?#": "a comment",
}
"""What the syntax of other engines has. RE2 leaves out what can not be matched in linear time."""


def expression_fault(expression: str, message: str, subject: str = "pattern after 're:'") -> str:
    """Return what is wrong with ``expression``, where, and the remedy; ``message`` is RE2's own.

    Args:
        subject: what the expression is for the one who wrote it. The place in a glob's expression is not its own.
    """
    kind, _, fragment = message.partition(": ")
    if kind.startswith(_SIZES):
        return TOO_LARGE
    what, at, known = _FAULTS.get(kind, "something that is not a regular expression"), fragment, True
    if kind == "invalid escape sequence" and fragment[1:].isdigit():
        what, known = "a back reference", False
    elif kind == "invalid perl operator":
        # RE2 cites two or three characters of the group, which can be the beginning of several kinds.
        at = next((mark for mark in _GROUPS if mark in expression and mark.startswith(fragment[:3])), fragment)
        what, known = _GROUPS.get(at, "a flag or a group"), False
    # A fragment that occurs twice does not tell the place.
    place = (
        f" at character {expression.index(at) + 1}" if at and expression.count(at) == 1 and subject != "glob" else ""
    )
    why = "" if known else f", {_UNKNOWN}"
    return f"The {subject} has {what}{place}{why}. {_INSTEAD}"
