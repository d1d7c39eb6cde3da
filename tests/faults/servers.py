"""The database and the broker in two flavors: the embedded ones, and Debian's PostgreSQL 15 with Redis 7.

Both die with the process that started them. Start them from the main thread, because the kernel ends them with the
thread that started them.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol
from urllib.parse import quote

import psycopg
import pytest
import redis

from jobs.embedded.children import Account, allow_traversal, chown_to, spawn, stop, unprivileged_account, wait_until
from jobs.embedded.postgres import Postgres, _initdb
from jobs.embedded.valkey import Valkey
from jobs.kit.errors import InstallationError
from tests.faults.proxy import Address

Flavor = Literal["embedded", "debian"]
FLAVORS: Final[tuple[Flavor, ...]] = ("embedded", "debian")

POSTGRES: Final = Path("/usr/lib/postgresql/15/bin")
REDIS: Final = Path("/usr/bin/redis-server")
PORT: Final = 5432  # of the socket's name only: both flavors' PostgreSQL listens on no network

_START_SECONDS: Final = 60.0
_RESTARTS: Final = 15


class Server(Protocol):
    """One server process that can be killed and started again on the same data and address."""

    @property
    def pid(self) -> int | None:
        """The id of the main process, or None."""

    def start(self) -> None:
        """Start it and wait until it answers. Raises: InstallationError."""

    def stop(self) -> None:
        """Stop it in the normal way."""


class DebianPostgres:
    """PostgreSQL 15 from the package ``postgresql-15``; under root it runs as the account of that package."""

    def __init__(self, data_dir: Path, socket_dir: Path) -> None:
        self._cluster = data_dir / "postgres15"
        self._socket_dir = socket_dir / "pg15"
        self._log = data_dir / "logs" / "postgres15.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the postmaster."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Make the cluster if it is missing, and wait for the processes of a killed postmaster to end."""
        account = _account()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if not self._cluster.exists():
            self._cluster.mkdir(mode=0o700)
            chown_to(account, self._cluster)
            allow_traversal(account, self._cluster)
            _initdb(POSTGRES, self._cluster, account)
        for last in (False,) * _RESTARTS + (True,):
            try:
                self._launch(account)
                return
            except InstallationError:
                if last:
                    raise
            time.sleep(1.0)

    def stop(self) -> None:
        """Do a fast shutdown."""
        if self._process is not None:
            stop(self._process, (signal.SIGINT, signal.SIGQUIT), seconds=20.0)
            self._process = None

    def _launch(self, account: Account | None) -> None:
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir.mkdir(mode=0o700)
        chown_to(account, self._socket_dir)
        allow_traversal(account, self._socket_dir)
        command: list[str | Path] = [
            POSTGRES / "postgres",
            "-D",
            self._cluster,
            "-k",
            self._socket_dir,
            "-h",
            "",
            "-p",
            str(PORT),
        ]
        self._process = spawn(command, log=self._log, on_parent_death=signal.SIGQUIT, account=account)
        wait_until(self._answers, self._process, name="PostgreSQL 15", log=self._log, seconds=_START_SECONDS)

    def _answers(self) -> bool:
        return answers(self._socket_dir)


class DebianRedis:
    """Redis 7 from the package ``redis-server``, without persistence."""

    def __init__(self, data_dir: Path, socket_dir: Path) -> None:
        self._socket_dir = socket_dir
        self._log = data_dir / "logs" / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    @property
    def pid(self) -> int | None:
        """The id of the server."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start it without data."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        command: list[str | Path] = [REDIS, *options, "--dir", self._socket_dir]
        self._process = spawn(command, log=self._log, on_parent_death=signal.SIGKILL)
        wait_until(self._answers, self._process, name="Redis", log=self._log, seconds=_START_SECONDS)

    def stop(self) -> None:
        """Stop it; its data is lost."""
        if self._process is not None:
            stop(self._process, (signal.SIGTERM,), seconds=5.0)
            self._process = None

    def _answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


@dataclass(frozen=True)
class Servers:
    """A database and a broker, with their addresses."""

    database: Server
    broker: Server
    database_address: Address
    broker_address: Address

    @property
    def database_url(self) -> str:
        """The URL without the proxy, for observers."""
        return f"postgresql://quantry@/postgres?host={quote(str(Path(str(self.database_address)).parent))}"


def answers(socket_dir: Path) -> bool:
    """Return whether PostgreSQL accepts connections at this address."""
    try:
        psycopg.connect(host=str(socket_dir), user="quantry", dbname="postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def missing(flavor: Flavor) -> str | None:
    """Return why this flavor can not run here; None if it can."""
    if flavor == "debian" and not ((POSTGRES / "postgres").exists() and REDIS.exists()):
        return "Debian's postgresql-15 and redis-server are not installed"
    return None


@contextmanager
def running_servers(flavor: Flavor, data_dir: Path) -> Iterator[Servers]:
    """Run both servers, empty and not migrated. ``data_dir`` must be short, because Unix sockets lie in it.

    Raises:
        pytest.skip.Exception: they are not installed.
    """
    reason = missing(flavor)
    if reason is not None:
        pytest.skip(reason)
    sockets = data_dir / "run"
    sockets.mkdir(parents=True)
    made = _embedded(data_dir, sockets) if flavor == "embedded" else _debian(data_dir, sockets)
    with contextlib.ExitStack() as stack:
        for server in (made.database, made.broker):
            stack.callback(server.stop)
            server.start()
        yield made


def _embedded(data_dir: Path, sockets: Path) -> Servers:
    broker = str(sockets / "valkey.sock")
    return Servers(Postgres(data_dir, sockets), Valkey(data_dir, sockets), _socket(sockets / "pg"), broker)


def _debian(data_dir: Path, sockets: Path) -> Servers:
    broker = DebianRedis(data_dir, sockets)
    address = ("127.0.0.1", broker.port)
    return Servers(DebianPostgres(data_dir, sockets), broker, _socket(sockets / "pg15"), address)


def _socket(directory: Path) -> str:
    return str(directory / f".s.PGSQL.{PORT}")


def _account() -> Account | None:
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        return unprivileged_account()
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)
