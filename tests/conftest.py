"""Servers that many tests share: a real PostgreSQL, migrated by Alembic, and a real Valkey, both private and empty."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import text

from jobs.embedded import Urls, embedded_services
from jobs.repository.database import Database
from jobs.repository.models import Base
from jobs.settings import Settings


def pytest_configure() -> None:
    """Tests say what they set: an operator's environment must not reach them. What is said to tests alone stays."""
    for name in [name for name in os.environ if name.startswith("QUANTRY_") and not name.startswith("QUANTRY_TEST_")]:
        del os.environ[name]


@pytest.fixture
def server_data_dir() -> Iterator[Path]:
    """An empty data directory for a test that starts servers of its own.

    Not under ``tmp_path``: every start of pytest closes that tree to other users, and under root PostgreSQL is one.
    """
    with TemporaryDirectory(prefix="quantry-test-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def embedded_urls() -> Iterator[Urls]:
    """Both servers, for the session."""
    with TemporaryDirectory(prefix="quantry-test-", ignore_cleanup_errors=True) as directory:
        settings = Settings(data_dir=Path(directory), database_url=None, broker_url=None)
        with embedded_services(settings) as urls:
            yield urls


@pytest.fixture(scope="session")
def database_url(embedded_urls: Urls) -> str:
    """The URL of the migrated database; take ``database`` too for one that is empty."""
    return embedded_urls.database_url


@pytest.fixture(scope="session")
def broker_url(embedded_urls: Urls) -> str:
    """The broker's URL, as Celery reads it."""
    return embedded_urls.broker_url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The database with every table empty."""
    database = Database(database_url, pool_size=20)
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with database.transaction() as session:
        session.execute(text(f"TRUNCATE {tables}"))
    yield database
    database.close()


@pytest.fixture(scope="session")
def demo_models_dir() -> Path:
    """Where ``smollm2-135m`` is: QUANTRY_MODELS_DIR, or where ``make serve`` puts it. Made on first use, then kept."""
    chosen = os.environ.get("QUANTRY_MODELS_DIR") or Path(__file__).resolve().parent.parent / "var" / "models"
    command = [sys.executable, "-m", "worker.prepare_demo_model", f"--models-dir={chosen}"]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return Path(chosen)
