"""How a worker stops without losing work: it takes no new job, and on demand lets the running one go.

Celery's main process and its pool children share one moment, mapped before the fork. The main process sets it when a
warm shutdown begins (SIGTERM): a child then claims no other job, and gives its own ``QUANTRY_DRAIN_SECONDS`` to end.
What has not ended by then it stops and hands back, as it does at once after a cold shutdown (SIGQUIT, or a second
Ctrl-C), whose moment is one long past, or its main process's death. Both also reach it as SIGTERM.
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
    """One per worker, made before the pool forks. ``drain_seconds``: what a job gets to end by itself."""

    def __init__(self, drain_seconds: float = math.inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = mmap.mmap(-1, _MOMENT.size)  # zeros, which the clock does not show again
        self._drain_seconds = drain_seconds
        self._clock = clock  # one for all processes of a machine
        self._yielding = False

    def begin(self, *, at_once: bool = False) -> None:
        """No process of this worker claims another job, from now on; ``at_once``: and each hands its own back."""
        if at_once or not self._began:
            _MOMENT.pack_into(self._shared, 0, -math.inf if at_once else self._clock())

    def yield_now(self) -> None:
        """This process lets its job go, or is ended by an alarm where the database does not take it."""
        if not self._yielding:
            self._yielding = True
            signal.alarm(_HAND_BACK_SECONDS)

    def yields(self) -> bool:
        """Whether this process alone was told to let its job go."""
        return self._yielding

    def has_begun(self) -> bool:
        """Whether this worker should claim no more."""
        return self._yielding or bool(self._began)

    def must_yield(self) -> bool:
        """Whether this process has to let its job go now."""
        return self._yielding or bool(self._began and self._clock() - self._began >= self._drain_seconds)

    @contextmanager
    def yielding_on_sigterm(self) -> Iterator[None]:
        """Within, SIGTERM asks for the job back instead of ending the process. For the main thread only.

        Handing back needs the database. Where that does not answer, an alarm ends the process, the kernel ends the
        runner with it, and the lease runs out.
        """
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGTERM, before)

    @property
    def _began(self) -> float:
        moment: float = _MOMENT.unpack_from(self._shared)[0]
        return moment

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        self.yield_now()
