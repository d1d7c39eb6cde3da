"""The migrations make exactly the tables the rows expect, again and again, and give up on a lock they can not get."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

from jobs.repository import migrate
from jobs.repository.database import Database, normalize_url
from jobs.repository.models import Base
from tests.migrations import is_current

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fresh_url(database_url: str) -> Iterator[str]:
    """A database of its own, without tables."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
        yield database_url.replace("/postgres?", "/fresh?")
        connection.execute("DROP DATABASE fresh WITH (FORCE)")


@pytest.fixture
def fresh(fresh_url: str) -> Iterator[Database]:
    """The empty database."""
    database = Database(fresh_url)
    yield database
    database.close()


def test_there_is_no_drift_between_rows_and_migrations(database: Database) -> None:
    migrate.check(database)


def test_upgrading_is_repeatable_and_known(fresh: Database) -> None:
    assert not is_current(fresh)
    migrate.upgrade(fresh)
    migrate.upgrade(fresh)
    assert is_current(fresh)
    assert set(inspect(fresh.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_a_downgrade_leaves_nothing(fresh: Database) -> None:
    migrate.upgrade(fresh)
    with fresh.engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(fresh.engine).get_table_names() == ["alembic_version"]


def test_a_migration_gives_up_on_a_lock(fresh: Database) -> None:
    migrate.upgrade(fresh)
    with fresh.engine.begin() as connection:
        connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        other = Database(fresh.engine.url.render_as_string(hide_password=False))
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(other)
        other.close()


def test_the_command_line_works_from_the_repository(fresh_url: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={"QUANTRY_DATABASE_URL": fresh_url, "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    database = Database(fresh_url)
    assert is_current(database)
    database.close()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_any_postgresql_url_is_understood(scheme: str) -> None:
    assert normalize_url(f"{scheme}://u:p@h/d") == "postgresql+psycopg://u:p@h/d"


@pytest.mark.parametrize("url", ["mysql://h/d", "postgresql", "sqlite:///x"])
def test_another_databases_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="PostgreSQL URL"):
        normalize_url(url)
