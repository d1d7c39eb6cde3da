"""The API as a process of its own, with the settings in its environment."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from jobs.settings import Settings
from tests.source import ROOT

_PROTOCOL = "api.http_protocol:BoundedHttp"  # as the image and ``python -m api`` have it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """``uvicorn api.main:app`` with the settings in its environment."""

    def __init__(self, settings: Settings, log: Path, **environment: str) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        assert settings.database_url is not None
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "api.main:app", "--http", _PROTOCOL, "--port", str(self.port)],
                cwd=ROOT,
                env={
                    **inherited,
                    "QUANTRY_DATA_DIR": str(settings.data_dir),
                    "QUANTRY_DATABASE_URL": settings.database_url.get_secret_value(),
                    **environment,
                },
                stdout=output,
                stderr=output,
            )

    def wait_until_alive(self) -> None:
        """Until /healthz answers."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/healthz").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError(self.log.read_text())

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def signal(self, number: int) -> float:
        """Send a signal; the seconds until the process was gone."""
        began = time.monotonic()
        self._process.send_signal(number)
        self._process.wait(timeout=30)
        return time.monotonic() - began

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)


@contextmanager
def api_process(settings: Settings, log: Path, **environment: str) -> Iterator[Process]:
    """Start the process, wait until it answers, and end it after the block."""
    process = Process(settings, log, **environment)
    try:
        process.wait_until_alive()
        yield process
    finally:
        process.kill()
