"""A request to the kernel (Linux) to end this process when its parent dies."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_EXIT_ORPHANED: Final = 70


def die_with_parent(parent_pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Ask for ``signum`` when the thread that started this process ends; exit at once if the parent is gone already.

    Other systems have no such request. There only the caller's lease and heartbeat limit the life of an orphan.

    Raises:
        OSError: the kernel refused.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    # The parent may have died before the request was made: then no signal will come.
    if os.getppid() != parent_pid:
        sys.exit(_EXIT_ORPHANED)
