"""How a worker stops without losing work: it takes no new job, and hands back what it can not finish.

Celery's main process and its pool children share one time stamp, in memory that is mapped before the fork. The main
process sets it when a warm shutdown begins (SIGTERM). A child then claims no other job, and its running job has
``QUANTRY_DRAIN_SECONDS`` to end. After that the child stops the job and hands it back. After a cold shutdown (SIGQUIT,
or a second Ctrl-C) or the death of the main process, it does so at once; a cold shutdown sets a time stamp that is long
past. In both cases the child also receives SIGTERM.
"""

import math
import mmap
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_HAND_BACK_SECONDS: Final = 20
_MOMENT: Final = struct.Struct("=d")


class Draining:
    """The draining of one worker, made before the pool forks. ``drain_seconds``: the time that a job has to end."""

    def __init__(self, drain_seconds: float = math.inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Zeros mean that draining has not begun: the clock never shows 0 again.
        self._shared = mmap.mmap(-1, _MOMENT.size)
        self._drain_seconds = drain_seconds
        self._clock = clock  # a monotonic clock, which all processes of a machine share
        self._yielding = False

    def begin(self, *, at_once: bool = False) -> None:
        """Let no process of this worker claim another job; with ``at_once``, each also hands back its own."""
        # A second warm signal must not give the jobs more time.
        if at_once or not self._began:
            _MOMENT.pack_into(self._shared, 0, -math.inf if at_once else self._clock())

    def yield_now(self) -> None:
        """Make this process hand back its job; an alarm ends the process if the database does not answer in time."""
        if not self._yielding:
            self._yielding = True
            signal.alarm(_HAND_BACK_SECONDS)

    def yields(self) -> bool:
        """Return whether this process itself was told to hand back its job."""
        return self._yielding

    def has_begun(self) -> bool:
        """Return whether this worker should claim no more jobs."""
        return self._yielding or bool(self._began)

    def must_yield(self) -> bool:
        """Return whether this process has to hand back its job now."""
        return self._yielding or bool(self._began and self._clock() - self._began >= self._drain_seconds)

    @contextmanager
    def yielding_on_sigterm(self) -> Iterator[None]:
        """Make SIGTERM hand the job back instead of ending the process, for the block. For the main thread only.

        Handing back needs the database. If it does not answer, an alarm ends the process, the kernel ends the runner
        with it, and the lease runs out.
        """
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            # The job is handed back: the alarm of yield_now must not end a process that is done.
            signal.alarm(0)
            signal.signal(signal.SIGTERM, before)

    @property
    def _began(self) -> float:
        moment: float = _MOMENT.unpack_from(self._shared)[0]
        return moment

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        self.yield_now()
