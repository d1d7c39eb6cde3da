"""Running the small programs that look into a model's tokenizer, so that the process that asks does not have to.

Each takes processor time and memory by the size of a file. A few run at a time, each for a limited time.
"""

import subprocess
import sys
import time
from pathlib import Path
from threading import BoundedSemaphore
from typing import Final

SECONDS = 2.0
"""A program that takes longer is not waited for: a stage of the job finds out then."""
_AT_A_TIME: Final = BoundedSemaphore(2)


def run_program(program: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
    """Run a file of Python that imports nothing of Quantry, and return how it ended.

    None where it could not be started, or did not end within ``SECONDS``, the time included in which others run.
    """
    end = time.monotonic() + SECONDS
    if not _AT_A_TIME.acquire(timeout=SECONDS):
        return None
    try:
        return subprocess.run(  # noqa: S603 - our own program, with a path that was checked
            [sys.executable, "-I", str(program), *arguments],
            input=given,
            capture_output=True,
            timeout=max(end - time.monotonic(), 0.0),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    finally:
        _AT_A_TIME.release()
