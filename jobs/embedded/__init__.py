"""Private PostgreSQL and Valkey servers, where no URLs are given: started, migrated, watched and stopped.

``python -m jobs.embedded`` runs them for other processes, and :func:`embedded_services` for this process.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from jobs.embedded.postgres import Postgres
from jobs.embedded.valkey import Valkey
from jobs.kit.errors import InstallationError
from jobs.repository import migrate
from jobs.repository.database import Database
from jobs.settings import Settings

# Unix socket paths have about 104 to 108 bytes at most, depending on the system.
_LONGEST_SOCKET_PATH: Final = 100
_LONGEST_SOCKET_NAME: Final = "pg/.s.PGSQL.5432"


@dataclass(frozen=True)
class Urls:
    """The URLs of the servers: the given ones, or those of the private servers."""

    database_url: str
    broker_url: str


class EmbeddedServices:
    """The private servers: one for each URL that ``settings`` does not give; none when both are given."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exit = ExitStack()
        self._servers: list[Postgres | Valkey] = []

    def start(self) -> Urls:
        """Start what is needed and migrate the database.

        Raises:
            InstallationError: another instance holds the data directory, or a server can not run here.
        """
        with contextlib.ExitStack() as undo:
            # A failed migration must not leave the servers running.
            undo.callback(self.stop)
            urls = self._start_servers()
            database = Database(urls.database_url)
            try:
                migrate.upgrade(database)
            finally:
                database.close()
            undo.pop_all()
        return urls

    def stop(self) -> None:
        """Stop the servers, newest first, and release the data directory."""
        self._exit.close()
        self._servers.clear()

    def revive(self) -> tuple[str, ...]:
        """Restart servers that died, with the same URLs, and return their names. Raises: InstallationError."""
        dead = [server for server in self._servers if server.pid is None]
        for server in dead:
            server.start()
        return tuple(type(server).__name__ for server in dead)

    def _start_servers(self) -> Urls:
        given_database, given_broker = self._settings.database_url, self._settings.broker_url
        if given_database is not None and given_broker is not None:
            return Urls(given_database.get_secret_value(), given_broker.get_secret_value())
        data_dir = self._settings.data_dir
        _make_directory(data_dir)
        self._exit.enter_context(_locked(data_dir))
        socket_dir = self._exit.enter_context(_socket_dir(data_dir))
        database_url = (
            given_database.get_secret_value() if given_database else self._run(Postgres(data_dir, socket_dir))
        )
        broker_url = given_broker.get_secret_value() if given_broker else self._run(Valkey(data_dir, socket_dir))
        return Urls(database_url, broker_url)

    def _run(self, server: Postgres | Valkey) -> str:
        # Before the start: a server that starts only in part must be stopped too.
        self._exit.callback(server.stop)
        server.start()
        self._servers.append(server)
        return server.url


@contextmanager
def embedded_services(settings: Settings) -> Iterator[Urls]:
    """Run the servers for the time of a ``with`` block. Raises: InstallationError."""
    services = EmbeddedServices(settings)
    urls = services.start()
    try:
        yield urls
    finally:
        services.stop()


@contextmanager
def embedded_database(settings: Settings) -> Iterator[str]:
    """Run only the private PostgreSQL for a ``with`` block, without a migration. Raises: InstallationError."""
    _make_directory(settings.data_dir)
    with _locked(settings.data_dir), _socket_dir(settings.data_dir) as socket_dir:
        server = Postgres(settings.data_dir, socket_dir)
        try:
            server.start()
            yield server.url
        finally:
            server.stop()


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallationError(
            f"The data directory {directory} can not be made: {error.strerror}. "
            "Set QUANTRY_DATA_DIR to a directory that can be made."
        ) from error


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Allow one instance per data directory. The kernel releases the lock when the process ends, also after a kill."""
    with (data_dir / "embedded.lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstallationError(_already_running(data_dir, stream)) from None
        # The process id is only for the error message of the next instance.
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _already_running(data_dir: Path, stream: IO[str]) -> str:
    stream.seek(0)
    return (
        f"Another Quantry (process {stream.read(20).strip() or 'unknown'}) already runs on {data_dir}. Stop it first, "
        "or give this one its own QUANTRY_DATA_DIR."
    )


@contextmanager
def _socket_dir(data_dir: Path) -> Iterator[Path]:
    """Make a directory for Unix sockets: in the data directory, or a temporary one where that path is too long."""
    inside = data_dir / "run"
    if len(os.fsencode(inside / _LONGEST_SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
        inside.mkdir(exist_ok=True)
        yield inside
        return
    short = Path(tempfile.mkdtemp(prefix="quantry-"))
    try:
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)
