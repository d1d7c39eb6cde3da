"""A subprocess in its own session, which sends messages over a pipe and can be killed with all its children.

The process group is killed before its leader is reaped. Until then the id of the group can not be given to another one.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import structlog
from pydantic import ValidationError

from worker.subprocesses.messages import Message, decode
from worker.subprocesses.token_pipe import handed_over, token_arguments

_CHUNK = 1 << 16
_MAX_LINE = 8 << 20

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start. ``--events-fd N`` is added to ``arguments``; ``environment`` is the whole environment.

    ``token`` is passed over a pipe of its own, ``--token-fd N``.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    token: str | None = field(default=None, repr=False)


class Child:
    """One started subprocess, a context manager. Its exit kills and reaps all processes that still run."""

    def __init__(self, command: Command) -> None:
        reader, writer = os.pipe()
        # receive() and drain() read until the pipe is empty, which must not block.
        os.set_blocking(reader, False)
        try:
            with command.log.open("ab") as log, handed_over(command.token) as pipes:
                self._process = subprocess.Popen(  # noqa: S603 — the arguments are ours; user input goes into a file
                    [*command.arguments, "--events-fd", str(writer), *token_arguments(pipes)],
                    env=dict(command.environment),
                    cwd=command.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writer, *pipes),
                    # A group of its own: one signal reaches all its children, and a Ctrl-C in a terminal does not.
                    start_new_session=True,
                )
        except (OSError, ValueError):
            os.close(reader)
            raise
        finally:
            os.close(writer)
        # The writing end is closed here now, so the pipe ends when the subprocess ends.
        self._reader = reader
        self._exit = _exit_watch(self._process.pid)
        self._buffer = bytearray()
        self._ended = False
        self._log = command.log

    @property
    def pid(self) -> int:
        """The id of the process, which is also the id of its session and group."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, timeout: float) -> list[Message]:
        """Return the messages that have arrived; wait up to ``timeout`` seconds for the first one or for the end."""
        # If the process closed its pipe and still runs, no message can come: only its end is waited for.
        awaited = [*([] if self._ended else [self._reader]), *([] if self._exit is None else [self._exit])]
        ready, _, _ = select.select(awaited, [], [], timeout)
        if self._reader in ready:
            self._fill()
        return self._parse()

    def drain(self) -> list[Message]:
        """Return all messages that are left in the pipe, once the process has ended."""
        while self._fill():
            pass
        return self._parse()

    def has_exited(self) -> bool:
        """Return whether the process has ended. It stays a zombie, so that its ids are not used again."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def exit_code(self) -> int:
        """Kill what is left of the group, reap the leader and return its code; negative for a signal."""
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def stop(self, grace: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Send SIGTERM to the group, and SIGKILL after ``grace`` seconds; 0 kills at once."""
        if grace > 0:
            self._signal(signal.SIGTERM)
            deadline = clock() + grace
            while not self.has_exited() and clock() < deadline:
                # A subprocess that writes while it stops must not block on a full pipe.
                self.receive(0.05)
        self.exit_code()

    def close(self) -> None:
        """Kill and reap the process, and close the pipe."""
        if self._reader >= 0:
            self.exit_code()
            os.close(self._reader)
            self._reader = -1
            if self._exit is not None:
                os.close(self._exit)
                self._exit = None

    def log_tail(self, characters: int = 4000) -> str:
        """Return the end of what the process wrote to its standard output and error."""
        try:
            with self._log.open("rb") as log:
                # A character has at most four bytes in UTF-8.
                log.seek(max(log.seek(0, os.SEEK_END) - 4 * characters, 0))
                return log.read().decode("utf-8", "replace")[-characters:]
        except OSError:
            return ""

    def _signal(self, signum: signal.Signals) -> None:
        if self._process.returncode is None:
            os.killpg(self.pid, signum)

    def _fill(self) -> bool:
        try:
            chunk = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return False
        self._buffer += chunk
        self._ended = not chunk
        return bool(chunk)

    def _parse(self) -> list[Message]:
        *lines, rest = self._buffer.split(b"\n")
        # A runner is not trusted: a line that never ends must not fill the supervisor's memory.
        if len(rest) > _MAX_LINE:
            logger.warning("message_dropped", reason="a line without an end", bytes=len(rest))
            rest = bytearray()
        self._buffer = bytearray(rest)
        messages = []
        for line in lines:
            try:
                messages.append(decode(bytes(line)))
            except ValidationError as error:
                logger.warning(
                    # Without the input: it may be large, and may hold anything.
                    "message_dropped",
                    reason=str(error.errors(include_input=False, include_url=False))[:500],
                )
        return messages


def _exit_watch(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None if the system has none."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
