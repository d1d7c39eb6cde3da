"""The thread that starts the sweeper process, and starts it again if it dies."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

import structlog

SWEEPER: Final = (sys.executable, "-P", "-m", "worker.sweeper")
_RESTART_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 5.0

logger = structlog.get_logger(__name__)


class SweeperRestarter:
    """Runs the sweeper from a thread that waits for it; the kernel ends the sweeper when that thread ends."""

    def __init__(
        self, owner: str, *, command: Sequence[str] = SWEEPER, restart_seconds: float = _RESTART_SECONDS
    ) -> None:
        self._command = [*command, "--owner", owner, "--parent-pid", str(os.getpid())]
        self._restart_seconds = restart_seconds
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="sweeper-restarter", daemon=True)

    def start(self) -> None:
        """Start the sweeper; return at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the sweeper, and wait for it. Do nothing if it was never started."""
        if not self._thread.is_alive():
            return
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                # Under the lock, so that the thread can not start a new sweeper between the two lines.
                self._process.send_signal(signal.SIGTERM)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join(_STOP_SECONDS)

    def _keep_running(self) -> None:
        while True:
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = subprocess.Popen(  # noqa: S603 — our own module, with our own arguments
                    self._command, stdin=subprocess.DEVNULL
                )
            code = self._process.wait()
            if not self._stopping.is_set():
                logger.error("sweeper_died", exit_code=code)
            # A pause, so that a sweeper that fails at its start is not restarted without end in a tight loop.
            self._stopping.wait(self._restart_seconds)
