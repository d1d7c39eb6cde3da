"""Servers that many tests share: a PostgreSQL migrated by Alembic and a Valkey, both private and empty."""

import os
import signal
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
    """Remove the operator's QUANTRY_* variables, except those for tests only, and let Ctrl-C reach children."""
    # A shell starts commands in the background with SIGINT ignored, which every child inherits, and some tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("QUANTRY_") and not name.startswith("QUANTRY_TEST_")]:
        del os.environ[name]


@pytest.fixture
def server_data_dir() -> Iterator[Path]:
    """Make an empty data directory for a test that starts servers of its own.

    It is not under ``tmp_path``: pytest closes that tree to other users at each start, and PostgreSQL runs as another
    user if the tests run as root.
    """
    with TemporaryDirectory(prefix="quantry-test-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def embedded_urls() -> Iterator[Urls]:
    """Start both servers for the session, and yield their URLs."""
    with TemporaryDirectory(prefix="quantry-test-", ignore_cleanup_errors=True) as directory:
        settings = Settings(data_dir=Path(directory), database_url=None, broker_url=None)
        with embedded_services(settings) as urls:
            yield urls


@pytest.fixture(scope="session")
def database_url(embedded_urls: Urls) -> str:
    """Return the URL of the migrated database; use ``database`` too for an empty one."""
    return embedded_urls.database_url


@pytest.fixture(scope="session")
def broker_url(embedded_urls: Urls) -> str:
    """Return the broker's URL in Celery's form."""
    return embedded_urls.broker_url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Yield the database with all tables empty."""
    database = Database(database_url, pool_size=20)
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with database.transaction() as session:
        session.execute(text(f"TRUNCATE {tables}"))
    yield database
    database.close()


@pytest.fixture(scope="session")
def demo_models_dir() -> Path:
    """Return the directory with ``smollm2-135m`` (QUANTRY_MODELS_DIR or ``make serve``'s); make it on first use."""
    chosen = os.environ.get("QUANTRY_MODELS_DIR") or Path(__file__).resolve().parent.parent / "var" / "models"
    command = [sys.executable, "-m", "worker.prepare_demo_model", f"--models-dir={chosen}"]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return Path(chosen)
