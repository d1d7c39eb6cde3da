"""The wheel, built once for the session."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.packaging.fresh import build_wheel


@pytest.fixture
def foreign_directory(tmp_path: Path) -> Path:
    """Make an empty directory to run commands in."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return directory


@pytest.fixture(scope="session")
def wheel() -> Iterator[Path]:
    """Build the wheel of this checkout."""
    with TemporaryDirectory(prefix="quantry-test-") as directory:
        yield build_wheel(Path(directory))
