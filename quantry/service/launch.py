"""Start a command that ends when the parent of this process ends.

``python -m quantry.service.launch SIGNAL PARENT_PID COMMAND…``

This program asks the kernel (Linux, ``PR_SET_PDEATHSIG``) to send SIGNAL when the parent ends, for whatever reason. The
request stays valid after ``exec``, so the command needs no code for it.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_EXIT_ORPHANED: Final = 70


def main(arguments: list[str]) -> None:
    """Replace this process by the command; this function does not return."""
    signal_name, parent_pid, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.Signals[signal_name]), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # If the parent died before the request was made, no signal will come.
    if os.getppid() != int(parent_pid):
        sys.exit(_EXIT_ORPHANED)
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
