"""Patterns that mean linears by their names, matched in time that is linear in the pattern and the name.

A pattern is one of four things:

- ``down_proj`` or ``model.layers.0.mlp.down_proj``: a last component, or a whole name;
- ``*.mlp.*`` or ``*_proj``: a glob on the whole name or the last component, where ``*`` is any text, ``?`` any one
  character and ``[0-3]`` one character of a set;
- ``re:`` and a regular expression in RE2's syntax, which has to match the whole name;
- ``Linear``: every linear, as recipes of llm-compressor write it.

Regular expressions run in RE2 (the package ``google-re2``), which does not backtrack: it builds an automaton whose size
and memory are bounded here. RE2 is imported when the first glob or expression is compiled, because an installation of
the client alone lacks it.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from quant_engine.policy.pattern_faults import TOO_LARGE, expression_fault

EVERY_CLASS: Final = "Linear"
"""The one class of modules that a pattern may name."""
EXPRESSION: Final = "re:"

_MAX_MEMORY: Final = 1 << 20
_MAX_STEPS: Final = 512
"""Instructions of RE2's program. With it and the memory, ten thousand names take a hostile pattern about 10 ms."""
_GLOB: Final = re.compile(r"\*|\?|\[!?[A-Za-z0-9_-]+\]|[A-Za-z0-9_.-]+", re.ASCII)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_CLASS: Final = re.compile(r"(torch\.)?(nn\.)?[A-Z][A-Za-z0-9]*", re.ASCII)
_LINES: Final = re.compile(r"\\[Az]|\(\?[A-Za-z]*(-[A-Za-z]*)?m", re.ASCII)
_HUGE: Final = re.compile(r"\{[0-9]*,?[0-9]{5}", re.ASCII)


class PatternError(ValueError):
    """A pattern that can not be used. ``code`` is for machines; the text has a remedy, and nothing of the pattern."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that can match no name of any model, or that RE2 can not run.

    Raises:
        PatternError: ``bad_pattern``; ``class_name`` for a class of modules other than ``Linear``.
        ModuleNotFoundError: a glob or an expression, where google-re2 is not installed.
    """
    if pattern.startswith(EXPRESSION) or _is_glob(pattern):
        _programs(pattern)
    elif pattern != EVERY_CLASS and _CLASS.fullmatch(pattern):
        raise PatternError(
            "class_name",
            "This is a class of modules. The one class that an entry may name is Linear, written so, which means every "
            "linear; embeddings, norms and the head are never quantized. Name linears, or leave this entry out.",
        )
    elif not _PLAIN.fullmatch(pattern):
        raise PatternError(
            "bad_pattern",
            "A name has letters, digits, '_', '-' and '.'; a glob also '*', '?' and sets such as [0-3]. Correct the "
            "entry, or put 're:' in front of a regular expression.",
        )


def matches(pattern: str, name: str) -> bool:
    """Return whether ``pattern`` means the linear ``name``. Raises: PatternError, as :func:`check_pattern`."""
    if pattern == EVERY_CLASS:
        return True
    leaf = name.rpartition(".")[2]
    if pattern.startswith(EXPRESSION):
        return _programs(pattern)[0](name)
    if _is_glob(pattern):
        one = _programs(pattern)[0]
        return one(name) or one(leaf)
    return pattern in (name, leaf)


class Names:
    """Names of modules, of which a pattern is asked whether it matches any: one pass over all of them together."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.leaves = tuple(dict.fromkeys(name.rpartition(".")[2] for name in self.names))
        self._plain = frozenset((*self.names, *self.leaves))
        # One line for each: RE2 searches a long text much faster than Python calls it for each name.
        self._lines = "\n".join(self.names).encode()
        self._leaf_lines = "\n".join(self.leaves).encode()

    def any_match(self, pattern: str) -> bool:
        """Return whether :func:`matches` is true of any of the names. Raises: PatternError."""
        if not self.names:
            return False
        if pattern.startswith(EXPRESSION):
            return _programs(pattern)[1](self._lines)
        if _is_glob(pattern):
            lines = _programs(pattern)[1]
            return lines(self._lines) or lines(self._leaf_lines)
        return pattern == EVERY_CLASS or pattern in self._plain


def beginning_test(expression: str) -> Callable[[str], bool]:
    """Return a test whether a name begins with what a regular expression of another program means.

    Raises:
        PatternError: RE2 can not run it.
    """
    one = _compiled(expression, "pattern after 're:'")
    if one.programsize > _MAX_STEPS:
        raise PatternError("bad_pattern", TOO_LARGE)
    return lambda name: one.match(name.encode()) is not None


def is_plain(pattern: str) -> bool:
    """Return whether the pattern is a name: no glob, no expression, and not ``Linear``."""
    return not pattern.startswith(EXPRESSION) and not _is_glob(pattern) and pattern != EVERY_CLASS


def _is_glob(pattern: str) -> bool:
    return not pattern.startswith(EXPRESSION) and any(mark in pattern for mark in "*?[")


# A policy has at most 3 × 64 patterns, and each is compared with every linear in turn.
@lru_cache(maxsize=256)
def _programs(pattern: str) -> tuple[Callable[[str], bool], Callable[[bytes], bool]]:
    """Return two tests of a glob or an expression: of one whole name, and of any line of a text."""
    expression = pattern.removeprefix(EXPRESSION) if pattern.startswith(EXPRESSION) else _of_glob(pattern)
    if not expression.isascii() or not expression.isprintable():
        raise PatternError(
            "bad_pattern", "The pattern has characters that no linear's name has. Use printable ASCII characters only."
        )
    if _LINES.search(expression):
        raise PatternError(
            "bad_pattern",
            "A pattern always has to match one whole name. Leave out \\A, \\z and the flag m; ^ and $ may stay.",
        )
    # RE2 takes a number that it can not hold for plain text.
    if _HUGE.search(expression):
        raise PatternError("bad_pattern", TOO_LARGE)
    # Alone first: no unbalanced bracket may meet those that are put around it.
    what = "pattern after 're:'" if pattern.startswith(EXPRESSION) else "glob"
    one = _compiled(expression, what)
    if one.programsize > _MAX_STEPS:
        raise PatternError("bad_pattern", TOO_LARGE)
    any_line = _compiled(f"(?m:^(?:{expression})$)", what, lines=True)
    return (
        lambda name: one.fullmatch(name.encode()) is not None,
        lambda text: any_line.search(text) is not None,
    )


def _of_glob(glob: str) -> str:
    parts = _GLOB.findall(glob)
    if "".join(parts) != glob:
        raise PatternError(
            "bad_pattern",
            "A glob has letters, digits, '_', '-', '.', '*', '?' and sets such as [0-3]. Correct the entry, or put "
            "'re:' in front of a regular expression.",
        )
    return "".join(_of_glob_part(part) for part in parts)


def _of_glob_part(part: str) -> str:
    if part in ("*", "?"):
        return ".*" if part == "*" else "."
    if part.startswith("["):
        return part.replace("[!", "[^", 1)
    return re.escape(part)


def _compiled(expression: str, what: str, *, lines: bool = False) -> Any:
    re2 = _re2()
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    options.never_capture = True
    # Names are ASCII: a character is one byte, which makes programs an order of magnitude smaller than with UTF-8.
    options.encoding = re2.Options.Encoding.LATIN1
    # In a text of several lines no pattern may match beyond the end of one.
    options.never_nl = lines
    try:
        return re2.compile(expression.encode(), options)
    except re2.error as error:
        message = error.args[0] if error.args else b""
        known = message.decode("latin-1") if isinstance(message, bytes) else str(message)
        raise PatternError("bad_pattern", expression_fault(expression, known, what)) from None


def _re2() -> Any:
    try:
        import re2  # noqa: PLC0415 - an installation of the client alone lacks it and needs it for these patterns only
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Globs and regular expressions need google-re2. Install it, or quantry with the extra 'server'."
        ) from error
    return re2
