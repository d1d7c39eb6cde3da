"""A wheel of this checkout, and fresh environments in which it is installed without access to the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.source import PACKAGES, ROOT, copy_source

LOCK = ROOT / "requirements.lock"
# Names that somebody's directory may well have: of our rooms, and of packages that they import.
FOREIGN = (*PACKAGES, "alembic", "celery", "httpx", "rich", "sqlalchemy", "torch", "typer", "uvicorn")
INSTALL_SECONDS = 540
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def project() -> dict[str, Any]:
    """Return the table ``project`` of pyproject.toml."""
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


def name_of(requirement: str) -> str:
    """Return the distribution of a requirement, in lower case, with hyphens: ``psycopg`` of ``psycopg[binary]>=3``."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def outside() -> dict[str, str]:
    """Return the environment of a user without a checkout: pip's configuration stays, PYTHONPATH and settings go."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QUANTRY_"))}


def build_wheel(directory: Path) -> Path:
    """Build the wheel from a copy, so that an earlier build of the checkout adds nothing to it."""
    source = copy_source(directory / "source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={directory}", str(source)]
    subprocess.run(command, check=True, env=outside(), timeout=INSTALL_SECONDS)
    (wheel,) = directory.glob("quantry-*.whl")
    return wheel


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment."""

    directory: Path

    @property
    def python(self) -> str:
        """The path of the interpreter."""
        return str(self.directory / "bin" / "python")

    @property
    def command(self) -> str:
        """The path of the installed command ``quantry``."""
        return str(self.directory / "bin" / "quantry")

    def install(self, *requirements: str) -> None:
        """Install packages with pip, with their dependencies at the releases of requirements.lock."""
        # Compiling everything would take longer than the few modules that are imported save.
        command = [*PIP, f"--python={self.python}", "install", "--no-compile", f"--constraint={LOCK}", *requirements]
        subprocess.run(command, check=True, env=outside(), capture_output=True, timeout=INSTALL_SECONDS)

    def run(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in ``cwd``."""
        return subprocess.run(
            arguments,
            cwd=cwd,
            env=outside() | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def distributions(self, cwd: Path) -> set[str]:
        """Return the names of the installed packages, in lower case, with hyphens."""
        program = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
        done = self.run(self.python, "-P", "-c", program, cwd=cwd)
        return {name_of(name) for name in done.stdout.split()}


def fresh_environment(directory: Path) -> Environment:
    """Make an empty environment that other accounts of this machine can read, such as PostgreSQL's."""
    directory.parent.chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=120)
    return Environment(directory=directory)


def write_foreign_packages(directory: Path, *, names: tuple[str, ...] = FOREIGN) -> None:
    """Write packages that are not Quantry's; a process that imports one from the current directory ends."""
    for name in names:
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(f"raise SystemExit('the folder {name} here was imported')\n")
