"""Log events have names in one spelling, and what belongs to them in fields."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "jobs", "worker")
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
LOGGERS = frozenset({"logger", "_logger", "log", "_log"})
EVENT = re.compile(r"[a-z]+(_[a-z]+)+")


def calls(module: Path) -> Iterator[ast.Call]:
    """Every call of a logger in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr=level, value=logger)) if (
                level in LEVELS and ast.unparse(logger) in LOGGERS
            ):
                yield node


def faults(source: Path) -> list[str]:
    """The calls that log anything but a snake_case name with fields."""
    return [
        f"{source.name}:{call.lineno}: {ast.unparse(call)}"
        for call in calls(source)
        if len(call.args) != 1
        or not isinstance(call.args[0], ast.Constant)
        or EVENT.fullmatch(str(call.args[0].value)) is None
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_an_event_is_a_snake_case_name_with_fields(room: str) -> None:
    modules = sorted((ROOT / room).rglob("*.py"))
    assert any(True for module in modules for _ in calls(module)), "nothing is logged here, or not found"
    assert [fault for module in modules for fault in faults(module)] == []


@pytest.mark.parametrize(
    "line", ['log.info("http.request")', 'log.info("the run failed")', 'log.info("died: %s", name)', "log.info(name)"]
)
def test_another_spelling_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(line)
    assert faults(tmp_path / "module.py")
