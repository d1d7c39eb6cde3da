"""What the wheel holds, and what it asks for."""

import importlib.metadata
import re
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

from quantry.service import extras
from tests.packaging.fresh import name_of, project
from tests.source import PACKAGES, ROOT

MIGRATIONS = "migrations"


def requirements(metadata: Message, extra: str | None) -> set[str]:
    """The names that the metadata asks for, without an extra or with this one."""
    marker = re.compile(r"""extra == ["'](\w+)["']""")
    found = ((line, marker.search(line)) for line in metadata.get_all("Requires-Dist", []))
    return {name_of(line) for line, match in found if (match.group(1) if match else None) == extra}


def test_it_holds_every_file_of_every_room_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"{MIGRATIONS}/env.py", f"{MIGRATIONS}/script.py.mako", f"{MIGRATIONS}/versions/0001_jobs.py"} <= expected
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert expected == {name for name in names if not name.startswith(info)}
    assert f"{info}/licenses/LICENSE" in names


def test_without_an_extra_it_asks_for_the_client_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    assert requirements(metadata, None) == {"httpx", "pydantic", "rich", "typer"}
    assert requirements(metadata, "server") >= {"alembic", "celery", "fastapi", "sqlalchemy", "psycopg", "uvicorn"}
    assert requirements(metadata, "worker") >= {"quantry", "torch", "transformers", "compressed-tensors"}
    assert set(metadata.get_all("Provides-Extra", [])) == {"server", "worker", "cuda", "dev"}


def test_the_lock_pins_everything_that_is_asked_for() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text().split()
    }
    optional = project()["optional-dependencies"]
    asked = [*project()["dependencies"], *optional["server"], *optional["worker"], *optional["dev"]]
    names = {name_of(line) for line in asked}
    assert names - pinned == {"quantry"}


def test_what_a_command_looks_for_is_what_the_extras_bring() -> None:
    """``quantry serve`` looks for modules; each belongs to a distribution that its extra names."""
    providers = importlib.metadata.packages_distributions()
    for extra, modules in extras._REQUIRED.items():
        named = {
            re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in project()["optional-dependencies"][extra]
        }
        for module in modules:
            assert {name_of(name) for name in providers[module]} & named, module
