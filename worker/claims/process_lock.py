"""A death that the kernel reports, so that nobody has to wait for a lease to run out.

The process that sees an attempt through keeps a lock on ``work/<job_id>/<fence>.held``, or on that of a publication
(``publishing/<publication_id>/<fence>.held``). The kernel lets the lock go when that process dies, however it dies:
whoever sweeps on the same machine can then take it, and the claim is over. A frozen process keeps its lock, and another
machine's is never judged: what is left to them is the lease. The fence guards every write all the same; a lock that
misleads costs an attempt, never a result.
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
    """For as long as this lasts, show this machine's sweepers that attempt ``fence`` has a living process.

    Where that can not be shown (a full disk, a file system without locks, no Linux), the lease alone does.
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
    """Every claim whose process died on this machine; other sweepers pass them over meanwhile.

    They stay until the next attempt here, or until the work files go: the fence tells which of them still matter.
    """
    with ExitStack() as stack:
        yield frozenset(orphan for directory in directories for orphan in _orphans(stack, directory, boot_id))


def _hold(stack: ExitStack, file: Path, machine: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for other in file.parent.glob(f"*{_SUFFIX}"):
        if _fence_of(other) < _fence_of(file):
            other.unlink(missing_ok=True)
    lock = stack.enter_context(file.open("wb", buffering=0))
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.write(machine)  # only now may anyone judge it
    stack.callback(file.unlink, missing_ok=True)


def _orphans(stack: ExitStack, directory: Path, boot_id: Path) -> Iterator[ClaimKey]:
    if not boot_id.is_file():
        return
    machine = boot_id.read_bytes()
    for file in directory.glob(f"*/*{_SUFFIX}"):
        with suppress(OSError):  # somebody holds it, or removed it meanwhile
            lock = os.open(file, os.O_RDONLY)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.read(lock, len(machine) + 1) == machine:
                yield file.parent.name, _fence_of(file)


def _fence_of(file: Path) -> int:
    return int(file.stem)
