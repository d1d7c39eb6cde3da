"""A file lock that shows whether the process of an attempt is alive, so that a sweep need not wait for its lease.

The process that runs an attempt holds a lock on ``work/<job_id>/<fence>.held``; for a publication it is
``publishing/<publication_id>/<fence>.held``. The kernel releases the lock when the process dies, for whatever reason. A
sweep on the same machine can then take the lock, and ends the claim. A frozen process still holds its lock, and locks
of other machines are never judged; in these cases the lease decides. The fence guards every write, so a wrong
conclusion from a lock costs an attempt and never a result (decision 0020).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from jobs.kit.leases import ClaimKey

_SUFFIX: Final = ".held"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

logger = structlog.get_logger(__name__)


@contextmanager
def hold_process_lock(directory: Path, claimed_id: str, fence: int, *, boot_id: Path = _BOOT_ID) -> Iterator[None]:
    """Show the sweepers of this machine, for the block, that the process of attempt ``fence`` is alive.

    Where this is not possible (a full disk, a file system without locks, no Linux), only the lease decides.
    """
    file = directory / claimed_id / f"{fence}{_SUFFIX}"
    with ExitStack() as stack:
        try:
            _hold(stack, file, boot_id.read_bytes())
        except OSError as error:
            logger.info("process_lock_failed", reason=str(error))
        yield


@contextmanager
def claims_of_dead_processes(*directories: Path, boot_id: Path = _BOOT_ID) -> Iterator[frozenset[ClaimKey]]:
    """Yield every claim whose process died on this machine; other sweepers skip these during the block.

    The lock files stay until the next attempt on this machine, or until the work files are removed. The fence shows
    which of the claims are still current.
    """
    with ExitStack() as stack:
        yield frozenset(orphan for directory in directories for orphan in _orphans(stack, directory, boot_id))


def _hold(stack: ExitStack, file: Path, machine: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for other in file.parent.glob(f"*{_SUFFIX}"):
        # Of attempts before this one: the claim is this process's now, so theirs are over.
        if _fence_of(other) < _fence_of(file):
            other.unlink(missing_ok=True)
    lock = stack.enter_context(file.open("wb", buffering=0))
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.write(machine)  # before this, a sweeper that gets the lock ignores the file
    stack.callback(file.unlink, missing_ok=True)


def _orphans(stack: ExitStack, directory: Path, boot_id: Path) -> Iterator[ClaimKey]:
    if not boot_id.is_file():
        return
    machine = boot_id.read_bytes()
    for file in directory.glob(f"*/*{_SUFFIX}"):
        with suppress(OSError):  # its process is alive, or the file was removed meanwhile
            lock = os.open(file, os.O_RDONLY)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another boot id: the lock may be another machine's on a shared file system, or from before a reboot.
            if os.read(lock, len(machine) + 1) == machine:
                yield file.parent.name, _fence_of(file)


def _fence_of(file: Path) -> int:
    return int(file.stem)
