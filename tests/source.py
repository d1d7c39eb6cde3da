"""A copy of the source: every package that the wheel holds, without caches and history."""

import shutil
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("api", "jobs", "migrations", "quant_engine", "quantry", "worker")


def copy_source(directory: Path) -> Path:
    """Copy every package to ``directory`` and return it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    return directory
