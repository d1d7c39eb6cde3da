"""The child processes of the service: their start, logs, stop, and restart after a crash.

A child never lives longer than this process, and never has the current directory on its import path. It is stopped by
its process id.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from quantry.errors import QuantryError
from quantry.service.python import PYTHON, safe_environment

_LOG_BYTES: Final = 16 << 20
_TAIL_BYTES: Final = 4096
_TAIL_LINES: Final = 8
_STEP_SECONDS: Final = 0.2
_STEADY_SECONDS: Final = 60.0
_MOST_CRASHES: Final = 6
_LONGEST_PAUSE_SECONDS: Final = 15.0


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """A process to start. ``arguments`` follow the interpreter; it gets ``death_signal`` when this process dies.

    ``announces`` means that the process writes one line to its standard output when it is ready.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    death_signal: signal.Signals = signal.SIGKILL
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 20.0
    pass_fds: tuple[int, ...] = ()
    announces: bool = False


class Process:
    """One child, in a session of its own, so that Ctrl-C in the terminal reaches only its parent."""

    def __init__(self, spec: ProcessSpec, logs_dir: Path) -> None:
        self.spec = spec
        self.log = logs_dir / f"{spec.name}.log"
        self.started_at = time.monotonic()
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        # What earlier processes wrote is before this.
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        command = [*PYTHON, "-m", "quantry.service.launch", spec.death_signal.name, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - constants and this interpreter, no one's input
                [*command, *PYTHON, *spec.arguments],
                env=safe_environment(spec.environment),
                stdin=subprocess.PIPE if spec.announces else subprocess.DEVNULL,
                stdout=subprocess.PIPE if spec.announces else log,
                stderr=log,
                pass_fds=spec.pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while the child runs."""
        return self._process.poll()

    def announcement(self, *, timeout_seconds: float, stopping: Callable[[], bool]) -> str | None:
        """Return the line that it writes when it is ready, or None if ``stopping`` became true first.

        Raises:
            QuantryError: ``start_failed``, if it ended or wrote no line in time.
        """
        stdout = self._process.stdout
        assert stdout is not None, "only for processes that announce"  # noqa: S101 - narrows the type
        line, deadline = b"", time.monotonic() + timeout_seconds
        while not line.endswith(b"\n"):
            if stopping():
                return None
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready within {timeout_seconds:g} s")
            if select.select([stdout], [], [], _STEP_SECONDS)[0]:
                chunk = os.read(stdout.fileno(), 4096)
                # The standard output is closed: the process ends, or has ended.
                if not chunk:
                    self._process.wait()
                    raise self.failure("ended while starting")
                line += chunk
        return line.decode("utf-8", "replace")

    def lines(self) -> Iterator[str]:
        """Yield the lines of its standard output until that is closed; for processes that announce."""
        stdout = self._process.stdout
        assert stdout is not None, "only for processes that announce"  # noqa: S101 - narrows the type
        for line in stdout:
            yield line.decode("utf-8", "replace").rstrip("\n")

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait()

    def failure(self, what: str) -> QuantryError:
        """Return ``start_failed`` with the end of the log, which holds the reason."""
        tail = "\n".join(f"    {line}" for line in self.tail())
        return QuantryError(
            "start_failed",
            f"{self.spec.name} {what}." + (f" Its log ends:\n{tail}" if tail else ""),
            hint=f"The whole log: {self.log}",
        )

    def tail(self) -> list[str]:
        """Return the last lines that it wrote to its log."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_begins, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return log.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]

    def stop(self) -> None:
        """Stop it by its stop signal, and by SIGKILL after its grace; then end all processes that it started."""
        # Listed before the stop: after it, orphans have another parent and can not be found.
        family = _descendants(self.pid)
        if self._process.poll() is None:
            self._process.send_signal(self.spec.stop_signal)
            try:
                self._process.wait(self.spec.grace_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        _, alive = psutil.wait_procs(family, timeout=self.spec.grace_seconds)
        for process in alive:
            _kill(process)
        psutil.wait_procs(alive, timeout=3)


class Kept:
    """A process that is restarted when it ends by itself: first at once, then after longer and longer pauses.

    After too many crashes in a row it is given up.
    """

    def __init__(self, spec: ProcessSpec, logs_dir: Path, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._logs_dir = logs_dir
        self._say = say
        self._crashes = 0
        self._again_at: float | None = None
        self.process = Process(spec, logs_dir)

    def check(self) -> None:
        """Check the process once, and restart it if that is due.

        Raises:
            QuantryError: ``start_failed``, if it has ended too often in a row.
        """
        now = time.monotonic()
        if self._again_at is not None:
            if now >= self._again_at:
                self._again_at = None
                self.process = Process(self._spec, self._logs_dir)
            return
        code = self.process.exit_code
        if code is None:
            return
        # A process that ran steadily before counts as a first crash.
        self._crashes = 1 if now - self.process.started_at > _STEADY_SECONDS else self._crashes + 1
        if self._crashes > _MOST_CRASHES:
            raise self.process.failure(f"ended {self._crashes} times in a row, last with {describe_exit(code)}")
        self.process.stop()
        pause = 0.0 if self._crashes == 1 else min(_LONGEST_PAUSE_SECONDS, 2.0 ** (self._crashes - 2))
        self._say(f"{self._spec.name} ended with {describe_exit(code)}; starting it again (log: {self.process.log}).")
        self._again_at = now + pause

    def stop(self) -> None:
        """Stop it, and do not restart it."""
        self._again_at = None
        self.process.stop()


def describe_exit(code: int) -> str:
    """Describe an exit code, or the signal that a negative one stands for."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
