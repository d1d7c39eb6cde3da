"""Which pg_dump fits a server, and what others on the machine can read of its call."""

from pathlib import Path

import pytest

from jobs.backup.programs import programs_for, run
from jobs.embedded.postgres import embedded_programs
from jobs.kit.errors import InstallationError
from jobs.repository.database import Database


def test_the_servers_own_version_or_the_next() -> None:
    offered = embedded_programs()
    newest = max(offered)
    assert programs_for(newest) == offered[newest]
    assert (programs_for(9) / "pg_dump").is_file()
    for version in offered:
        assert programs_for(version) == offered[version]
    with pytest.raises(InstallationError, match="postgresql-client-99"):
        programs_for(99)


def test_a_password_is_on_no_command_line(tmp_path: Path) -> None:
    program, heard = tmp_path / "pg_dump", tmp_path / "heard"
    program.write_text(f'#!/bin/sh\necho "$@" "|" "$PGPASSWORD" > {heard}\n')
    program.chmod(0o755)
    database = Database("postgresql://quantry:hunter2@db:5433/service?sslmode=require")
    run(program, database, "--format=custom")
    arguments, _, password = heard.read_text().strip().partition(" | ")
    assert password == "hunter2"  # noqa: S105 — opens nothing
    assert "hunter2" not in arguments
    for each in ("user=quantry", "host=db", "port=5433", "dbname=service", "sslmode=require", "--format=custom"):
        assert each in arguments
    database.close()


def test_what_a_program_says_is_told(tmp_path: Path) -> None:
    program = tmp_path / "pg_restore"
    program.write_text("#!/bin/sh\necho 'the archive is damaged' >&2\nexit 1\n")
    program.chmod(0o755)
    database = Database("postgresql://quantry@db/service")
    with pytest.raises(InstallationError, match="pg_restore failed: the archive is damaged"):
        run(program, database)
    database.close()
