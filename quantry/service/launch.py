"""Start a command that does not outlive this one's parent.

``python -m quantry.service.launch SIGNAL PARENT_PID COMMAND…``

The kernel is asked (Linux, ``PR_SET_PDEATHSIG``) to send SIGNAL when the parent ends, however it ends; the request
holds across ``exec``, so the command needs to know nothing of it.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_EXIT_ORPHANED: Final = 70


def main(arguments: list[str]) -> None:
    """Become the command; returns only by exiting."""
    signal_name, parent_pid, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.Signals[signal_name]), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the request was made sends no signal any more.
    if os.getppid() != int(parent_pid):
        sys.exit(_EXIT_ORPHANED)
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
