"""What the documents name exists: links, paths, modules, and the functions of ``docs/algorithm.md``."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Final

import pytest

from jobs.settings import Settings

_ROOT: Final = Path(__file__).parents[2]
_ROOMS: Final = ("api", "jobs", "worker", "quantry", "quant_engine", "benchmarks", "tests", "docs")
_OURS: Final = (*_ROOMS[:6], "tests")
_DOCUMENTS: Final = sorted(
    [_ROOT / "README.md", _ROOT / "CONTRIBUTING.md", *(_ROOT / "docs").rglob("*.md")],
    key=str,
)
_TERMS: Final = (
    "claim",
    "lease",
    "fence",
    "nudge",
    "sweep",
    "site",
    "reader",
    "online",
    "stream",
    "record",
    "plan",
    "reservoir",
)

_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_CODE: Final = re.compile(r"`([^`\n]+)`")
_PATH: Final = re.compile(rf"(?:{'|'.join(_ROOMS)})/[\w./-]*")
_MODULE: Final = re.compile(r"python3? -m ([\w.]+)")
_NAMED: Final = re.compile(r"`(\w+)`(?: \(|, )`([\w/]+\.py)`")


def _name(document: Path) -> str:
    return str(document.relative_to(_ROOT))


def _prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def _defined(module: Path) -> set[str]:
    """Names of the functions and classes of a module, methods included."""
    tree = ast.parse(module.read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def test_documents_were_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/glossary.md", "docs/algorithm.md"} <= set(map(_name, _DOCUMENTS))


@pytest.mark.parametrize("term", _TERMS)
def test_the_glossary_explains(term: str) -> None:
    rows = re.findall(rf"^\| {term} \| (.+) \|$", (_ROOT / "docs" / "glossary.md").read_text(), flags=re.MULTILINE)
    assert len(rows) == 1
    assert len(rows[0].split()) >= 8, f"{term} has no whole sentence"
    assert ". " not in rows[0], f"{term} has more than one sentence"


@pytest.mark.parametrize("document", _DOCUMENTS, ids=_name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    targets = [link.partition("#")[0] for link in _LINK.findall(_prose(document)) if "://" not in link]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", _DOCUMENTS, ids=_name)
def test_paths_exist(document: Path) -> None:
    paths = [code for code in _CODE.findall(_prose(document)) if _PATH.fullmatch(code)]
    assert [path for path in paths if not (_ROOT / path).exists()] == []


@pytest.mark.parametrize("document", _DOCUMENTS, ids=_name)
def test_modules_of_commands_exist(document: Path) -> None:
    modules = {name for name in _MODULE.findall(document.read_text()) if name.partition(".")[0] in _OURS}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_every_setting_is_named_in_the_documents() -> None:
    documents = "".join((_ROOT / path).read_text() for path in ("README.md", "docs/operations.md"))
    named = set(re.findall(r"QUANTRY_[A-Z0-9_]+", documents))
    variables = {f"QUANTRY_{field.upper()}" for field in Settings.model_fields}
    assert "QUANTRY_S3_PART_BYTES" in variables
    assert sorted(variables - named) == []


def test_functions_of_the_algorithm_are_where_it_says() -> None:
    engine = _ROOT / "quant_engine"
    named = _NAMED.findall(_prose(_ROOT / "docs" / "algorithm.md"))
    assert len(named) > 20
    missing = [
        f"{name} in {path}"
        for name, path in named
        if not (engine / path).is_file() or name not in _defined(engine / path)
    ]
    assert missing == []
