"""The examples of ``docs/extending.md``, and how one is applied to a copy of the source."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.source import ROOT

_SECTION: Final = re.compile(r"^## (?P<title>.+?)\n(?P<text>.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_DIFF: Final = re.compile(r"^```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One section: its title, and its diff."""

    title: str
    diff: str

    @property
    def edited(self) -> set[str]:
        """The paths of the files that the diff changes."""
        return self._paths - self.added

    @property
    def added(self) -> set[str]:
        """The paths of the files that the diff makes."""
        return {path for path, head in self._heads if "new file mode" in head}

    @property
    def _paths(self) -> set[str]:
        return {path for path, _ in self._heads}

    @property
    def _heads(self) -> list[tuple[str, str]]:
        return re.findall(r"^diff --git a/(\S+) b/\S+\n(.*?)(?=^diff --git|\Z)", self.diff, re.DOTALL | re.MULTILINE)


def examples() -> dict[str, Example]:
    """Every example by its section's title, in the order of the page."""
    page = (ROOT / "docs" / "extending.md").read_text()
    found = {}
    for section in _SECTION.finditer(page):
        (diff,) = _DIFF.findall(section["text"])
        found[section["title"]] = Example(title=section["title"], diff=diff)
    return found


def apply_example(example: Example, directory: Path, *, only: str = "*") -> None:
    """Apply an example to a copy, or what it says about the files that match ``only``.

    Raises:
        subprocess.CalledProcessError: the diff does not apply any more.
    """
    # Without the ceiling git would take a repository above the copy for the one that it patches.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(directory.parent)}
    subprocess.run(
        ["git", "apply", f"--include={only}", "-"],
        cwd=directory,
        input=example.diff,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
