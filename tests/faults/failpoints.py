"""Fail points: a process dies just before or just after the n-th commit, publish or rename from now on.

The product has no code for them. A process that starts through ``tests.faults.wrapped`` has the functions at these
edges replaced. A fault is armed by a file. The process that dies at it removes the file first, so a point kills once.
Before :func:`install`, only the standard library is used, because the scripted runner starts hundreds of times.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

Role = Literal["api", "worker", "sweeper", "runner"]
Edge = Literal["commit", "publish", "rename"]
Moment = Literal["before", "after"]

EDGES: Final[dict[Role, tuple[Edge, ...]]] = {
    "api": ("commit", "publish"),
    "worker": ("commit", "publish", "rename"),
    "sweeper": ("commit", "publish"),
    "runner": ("rename",),
}
"""Which edges each process has."""

DIRECTORY: Final = "failpoints"
_FIRED: Final = "fired.jsonl"
_RENAMES: Final = ("rename", "replace", "link")


@dataclass(frozen=True)
class FailPoint:
    """A fault that kills the first process of ``role`` that reaches its ``hits``-th ``edge`` from now on."""

    role: Role
    edge: Edge
    moment: Moment
    hits: int
    signum: int = signal.SIGKILL  # or SIGSTOP: the process stays where it is until somebody sends SIGCONT

    @property
    def name(self) -> str:
        """The name of the file that arms it."""
        return f"{self.role}.{self.edge}.{self.moment}"


@dataclass(frozen=True)
class Fired:
    """A point at which a process died; ``parent`` shows the worker of a pool child or a runner."""

    name: str
    pid: int
    parent: int
    at: float


def arm(data_dir: Path, point: FailPoint) -> None:
    """Arm a point from now on, and replace one with the same name."""
    directory = data_dir / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f".{point.name}.{time.monotonic_ns()}"
    draft.write_text(f"{point.hits} {int(point.signum)}")
    os.replace(draft, directory / point.name)  # noqa: PTH105 — beside the functions that this module replaces


def disarm(data_dir: Path) -> None:
    """Remove every point that has not fired."""
    for file in (data_dir / DIRECTORY).glob("*.*.*"):
        if file.name != _FIRED:
            file.unlink(missing_ok=True)


def is_armed(data_dir: Path) -> bool:
    """Return whether a point still waits for its process."""
    return any(not file.name.startswith(".") for file in (data_dir / DIRECTORY).glob("*.*.*"))


def fired(data_dir: Path) -> Iterator[Fired]:
    """Return the points that have fired so far, oldest first."""
    file = data_dir / DIRECTORY / _FIRED
    if file.exists():
        for line in file.read_text().splitlines():
            yield Fired(**json.loads(line))


class Trap:
    """The fail points of one process."""

    def __init__(self, role: Role, data_dir: Path) -> None:
        self._role = role
        self._directory = data_dir / DIRECTORY
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], int] = {}

    def around(self, edge: Edge, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with a fail point before and after it."""

        def guarded(*arguments: Any, **options: Any) -> Any:
            self._reached(edge, "before")
            answer = function(*arguments, **options)
            self._reached(edge, "after")
            return answer

        return guarded

    def _reached(self, edge: Edge, moment: Moment) -> None:
        file = self._directory / f"{self._role}.{edge}.{moment}"
        try:
            armed = file.stat().st_mtime_ns
            hits, signum = (int(word) for word in file.read_text().split())
        except (OSError, ValueError):
            return
        with self._lock:
            count = self._counts[file.name, armed] = self._counts.get((file.name, armed), 0) + 1
            if count >= hits:
                self._die(file, signum)

    def _die(self, file: Path, signum: int) -> None:
        try:
            file.unlink()
        except FileNotFoundError:
            return  # another process was quicker
        words = asdict(Fired(file.name, os.getpid(), os.getppid(), time.time()))
        with (self._directory / _FIRED).open("a") as log:
            log.write(json.dumps(words) + "\n")
        os.kill(os.getpid(), signum)


def install(role: Role, data_dir: Path) -> None:
    """Put fail points at this process's edges."""
    trap = Trap(role, data_dir)
    if "rename" in EDGES[role]:
        for name in _RENAMES:
            _replace(os, name, trap, "rename")
    if "commit" in EDGES[role]:
        import psycopg  # noqa: PLC0415 — the runner has none

        _replace(psycopg.Connection, "commit", trap, "commit")
    if "publish" in EDGES[role]:
        import kombu.messaging  # noqa: PLC0415 — the runner has none

        _replace(kombu.messaging.Producer, "publish", trap, "publish")


def _replace(owner: ModuleType | type, name: str, trap: Trap, edge: Edge) -> None:
    setattr(owner, name, trap.around(edge, getattr(owner, name)))
