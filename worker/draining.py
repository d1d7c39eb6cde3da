"""How a worker stops without losing work: it takes no new job, and on demand lets the running one go.

Celery's main process and its pool children share one byte, mapped before the fork. The main process sets it when a warm
shutdown begins (SIGTERM): a child then finishes its job and claims no other. A cold shutdown (SIGQUIT, or a second
Ctrl-C) and the main process's death both reach the child as SIGTERM: it stops its runner and hands the job back.
"""

import mmap
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_HAND_BACK_SECONDS: Final = 20
_SET: Final = b"\x01"


class Draining:
    """One per worker, made before the pool forks."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)
        self._yielding = False

    def begin(self) -> None:
        """No process of this worker claims another job."""
        self._shared[0:1] = _SET

    def has_begun(self) -> bool:
        """Whether this worker should claim no more."""
        return self._yielding or self._shared[0:1] == _SET

    def must_yield(self) -> bool:
        """Whether this process has to let its job go now."""
        return self._yielding

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

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        if not self._yielding:
            self._yielding = True
            signal.alarm(_HAND_BACK_SECONDS)
