"""PostgreSQL's own ``pg_dump`` and ``pg_restore``: finding and calling them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobs.embedded.postgres import embedded_programs
from jobs.kit.errors import InstallationError
from jobs.repository.database import Database

_INSTALLED: Final = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
# The cause of a failure is at the end of the output.
_SAID_BYTES: Final = 2000


def programs_for(server_version: int) -> Path:
    """Return the directory of the programs of the server's major version, or else of the next newer one.

    pg_dump refuses a server that is newer than itself. Newer programs may write what an older server does not know.

    Raises:
        InstallationError: there are none.
    """
    found = dict(sorted(_installed(), reverse=True)) | embedded_programs()
    fitting = [version for version in sorted(found) if version >= server_version]
    if not fitting:
        raise InstallationError(
            f"The database's server is PostgreSQL {server_version}, and pg_dump of that version is not installed here "
            f"(found: {sorted(found) or 'none'}). Install PostgreSQL's client programs, postgresql-client-"
            f"{server_version} in Debian, or run the command where they are."
        )
    return found[fitting[0]]


def run(program: Path, database: Database, *arguments: str) -> None:
    """Run ``program`` on the database. The password is not on the command line, which other users can read.

    Raises:
        InstallationError: it failed; the message contains the end of its output.
    """
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    parameters = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    secret = {"PGPASSWORD": parameters.pop("password")} if "password" in parameters else {}
    done = subprocess.run(  # noqa: S603 — PostgreSQL's program with arguments made here
        [str(program), f"--dbname={make_conninfo(**parameters)}", *arguments],
        env={**os.environ, **secret, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise InstallationError(f"{program.name} failed: {done.stderr.strip()[-_SAID_BYTES:]}")


def _installed() -> Iterator[tuple[int, Path]]:
    for pattern in _INSTALLED:
        for directory in Path("/").glob(pattern.removeprefix("/")):
            yield from _versioned(directory)
    on_path = shutil.which("pg_dump")
    if on_path is not None and shutil.which("pg_restore") is not None:
        yield from _versioned(Path(on_path).parent)


def _versioned(directory: Path) -> Iterator[tuple[int, Path]]:
    """Yield (major version, directory) if the directory has the programs."""
    try:
        said = subprocess.run(  # noqa: S603 — as above
            [str(directory / "pg_dump"), "--version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return
    if match := re.search(r"\) (\d+)", said.stdout):
        yield int(match[1]), directory
