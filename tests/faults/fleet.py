"""The service as processes: an API, workers, and the servers behind proxies; dead processes are started again.

The fleet does only what an operator's process manager does: it starts, restarts after a second, and stops. All of this
happens in the calling thread, which must be the thread that made the fleet.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from jobs.repository import migrate
from jobs.repository.database import Database
from tests.faults import catalog, failpoints
from tests.faults.proxy import Proxy
from tests.faults.servers import Flavor, Servers, running_servers

ROOT: Final = Path(__file__).parents[2]
FAST: Final[Mapping[str, float]] = {
    "lease_seconds": 3.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "retry_delay_seconds": 0.1,
}  # fmt: skip
"""Leases of three seconds, where the promise is not about the default's thirty."""

LEASE_SECONDS: Final = 30.0
"""The default's."""

_RESTART_SECONDS: Final = 1.0
_API: Final = ("-m", "tests.faults.wrapped", "api", "uvicorn", "api.main:app", "--timeout-graceful-shutdown=5")
_WORKER: Final = ("-m", "celery", "-A", "tests.faults.worker", "worker", "--loglevel=INFO")


@dataclass
class Kept:
    """One process that is restarted when it dies."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    descriptors: tuple[int, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    due: float = 0.0

    @property
    def pid(self) -> int | None:
        """The process id if it runs, else None."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def tend(self) -> bool:
        """Start it if it does not run and its pause is over; return whether it was started."""
        if self.pid is not None:
            return False
        now = time.monotonic()
        if self.process is not None:
            self.process, self.due = None, now + _RESTART_SECONDS
        if now < self.due:
            return False
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=self.descriptors,
                start_new_session=True,
            )
        return True

    def family(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                return [process, *process.children(recursive=True)]
        return []


@dataclass
class Fleet:
    """The service to which faults are done. ``url`` is the API's."""

    data_dir: Path
    servers: Servers
    database_proxy: Proxy
    broker_proxy: Proxy
    url: str
    api: Kept
    workers: list[Kept]
    lease_seconds: float = LEASE_SECONDS

    @property
    def observer_url(self) -> str:
        """The URL of the database without the proxy."""
        return self.servers.database_url

    @property
    def processes(self) -> list[Kept]:
        """The API and the workers."""
        return [self.api, *self.workers]

    def tend(self) -> list[str]:
        """Start all dead processes again, and return their names."""
        return [kept.name for kept in self.processes if kept.tend()]

    def child_of(self, worker: Kept) -> psutil.Process | None:
        """Return the worker's pool child."""
        return _find(worker, lambda process: process.ppid() == worker.pid and "wrapped" not in _command(process))

    def sweeper_of(self, worker: Kept) -> psutil.Process | None:
        """Return the worker's sweeper."""
        return _find(worker, lambda process: "worker.sweeper" in _command(process))

    def runner_of(self, worker: Kept) -> psutil.Process | None:
        """Return the process that computes the worker's job now, or None."""
        return _find(worker, lambda process: "--events-fd" in _command(process))

    def stop(self) -> None:
        """End everything, however deaf it is."""
        for kept in self.processes:
            family = kept.family()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)
            if kept.process is not None:
                kept.process.wait(10)

    def terminate(self, kept: Kept, *, seconds: float = 60.0) -> int:
        """Send SIGTERM and wait, as a deployment does; return the exit code."""
        assert kept.process is not None
        kept.process.send_signal(signal.SIGTERM)
        return kept.process.wait(seconds)


@contextmanager
def running_fleet(
    flavor: Flavor, *, settings: Mapping[str, float], workers: int = 2, logs: Path | None = None
) -> Iterator[Fleet]:
    """Start all processes on a migrated database, without waiting for them; ``settings`` are the service's.

    The log files stay in ``logs``.

    Raises:
        pytest.skip.Exception: the servers are not installed.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(prefix="quantry-faults-", ignore_cleanup_errors=True))
        servers = stack.enter_context(running_servers(flavor, Path(directory)))
        database = Database(servers.database_url)
        migrate.upgrade(database)
        database.close()
        database_proxy = stack.enter_context(Proxy(servers.database_address))
        broker_proxy = stack.enter_context(Proxy(servers.broker_address))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        data_dir = Path(directory) / "data"
        catalog.write_models(data_dir / "models")
        (data_dir / failpoints.DIRECTORY).mkdir()
        environment = _environment(data_dir, database_proxy, broker_proxy, settings)
        log = logs or Path(directory) / "logs"
        log.mkdir(parents=True, exist_ok=True)
        api = Kept(
            "api", (*_API, f"--fd={listener.fileno()}"), environment, log / "api.log", descriptors=(listener.fileno(),)
        )
        made = [Kept(f"worker{index}", _WORKER, environment, log / f"worker{index}.log") for index in range(workers)]
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        lease = float(settings.get("lease_seconds", LEASE_SECONDS))
        fleet = Fleet(data_dir, servers, database_proxy, broker_proxy, url, api, made, lease)
        stack.callback(fleet.stop)
        fleet.tend()
        yield fleet


def _environment(data_dir: Path, database: Proxy, broker: Proxy, settings: Mapping[str, float]) -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUANTRY_")}
    given = {
        "DATA_DIR": data_dir,
        "DATABASE_URL": f"postgresql://quantry@127.0.0.1:{database.port}/postgres",
        "BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
        **{name.upper(): value for name, value in settings.items()},
    }
    return {**inherited, "PYTHONUNBUFFERED": "1", **{f"QUANTRY_{name}": str(value) for name, value in given.items()}}


def _find(worker: Kept, wanted: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    for process in worker.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and wanted(process):
                return process
    return None


def _command(process: psutil.Process) -> str:
    return " ".join(process.cmdline())
