"""What is wrong with a job, found before anything is computed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quant_engine.errors import EngineError, UnsupportedPolicy


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason to refuse a job.

    Attributes:
        pointer: a JSON pointer to the field of the request (``/policy/weights/group_size``).
        code: that of an :class:`EngineError`, for machines.
        detail: what is wrong; hint: what to do.
    """

    pointer: str
    code: str
    detail: str
    hint: str

    @classmethod
    def of(cls, error: EngineError, pointer: str) -> "Problem":
        """Return an engine's error as the problem of a field."""
        return cls(pointer=pointer, code=error.code, detail=error.detail, hint=error.hint)


def refuse(problems: Sequence[Problem]) -> None:
    """Raise the engine's error for the first problem, which names the others too; do nothing where there is none."""
    if not problems:
        return
    first = problems[0]
    kind = next((each for each in _tree(EngineError) if each.code == first.code), UnsupportedPolicy)
    # The same remedy need not be read twice.
    raise kind(
        detail=" ".join(dict.fromkeys(each.detail for each in problems)),
        hint=" ".join(dict.fromkeys(each.hint for each in problems)),
    )


def _tree(base: type[EngineError]) -> Iterable[type[EngineError]]:
    for each in base.__subclasses__():
        yield each
        yield from _tree(each)
