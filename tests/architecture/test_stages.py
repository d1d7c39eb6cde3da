"""The list of stages and the code that runs them name the same ones."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from quant_engine.interface import stages
from quant_engine.interface.stages import PUBLISH, RESOLVE, STAGES, StageRow

ROOT: Final = Path(__file__).parents[2]


def _calls(function: str, below: str) -> Iterator[dict[str, ast.expr]]:
    """The keyword arguments of every call of ``function`` in the files below a folder."""
    for path in sorted((ROOT / below).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function:
                yield {word.arg: word.value for word in node.keywords if word.arg is not None}


def _text(expression: ast.expr) -> str:
    """The value of a literal, or of ``RESOLVE.name`` and its like."""
    if isinstance(expression, ast.Attribute):
        assert isinstance(expression.value, ast.Name)
        row: StageRow = getattr(stages, expression.value.id)
        return row.name
    assert isinstance(expression, ast.Constant)
    return str(expression.value)


def _run(function: str, below: str) -> set[tuple[str, str]]:
    return {(_text(call["name"]), _text(call["unit"])) for call in _calls(function, below)}


def _listed(*rows: StageRow) -> set[tuple[str, str]]:
    return {(row.name, unit) for row in rows for unit in row.units}


def test_the_engine_and_the_worker_run_the_listed_stages_and_no_others() -> None:
    assert _run("StageStarted", "worker/attempts") == _listed(RESOLVE, PUBLISH)
    assert _run("Stage", "quant_engine") == _listed(*(row for row in STAGES if row not in (RESOLVE, PUBLISH)))
