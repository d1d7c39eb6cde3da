"""The problems that a job's owner reads, made from exceptions in a subprocess."""

import errno
from typing import Final

from jobs.kit.errors import JobProblem
from quant_engine.errors import EngineError, InvalidModel, is_native_panic
from worker.subprocesses.messages import Error

DISK_FULL: Final = "disk_full"
INSUFFICIENT_MEMORY: Final = "insufficient_memory"
"""The engine uses the same two codes."""

_DISK_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MEMORY_SIGNS: Final = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def as_error(error: BaseException) -> Error:
    """Return ``error`` as a message. An unexpected error shows only its type: its text may hold paths and values."""
    if isinstance(error, EngineError):
        return Error(code=error.code, category=error.category, detail=error.detail, hint=error.hint)
    if is_native_panic(error):
        return _panic()
    if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
        return disk_full()
    if _is_out_of_memory(error):
        return insufficient_memory()
    return internal_error(f"The run ended with an unexpected {type(error).__name__}.")


def disk_full() -> Error:
    """Return the error for a full disk under the data directory."""
    return Error(
        code=DISK_FULL,
        category="capacity",
        detail="The worker's disk is full.",
        hint="Free space under QUANTRY_DATA_DIR, delete jobs that are no longer needed, and submit the job again.",
    )


def insufficient_memory(detail: str = "The machine ran out of memory.") -> Error:
    """Return the error for a run that needs more memory than there is."""
    return Error(
        code=INSUFFICIENT_MEMORY,
        category="capacity",
        detail=detail,
        hint="Use fewer calibration samples, a smaller model, or a worker with more memory.",
    )


def internal_error(detail: str) -> Error:
    """Return the error for a fault of the service; the traceback is in the worker's log."""
    return Error(
        code="internal_error",
        category="platform",
        detail=detail,
        hint="Submit the job again. If it happens twice, report the job's id: the worker's log has the cause.",
    )


def _panic() -> Error:
    """Return the error for a panic of native code that nothing on the way has told in more detail."""
    return Error(
        code=InvalidModel.code,
        category=InvalidModel.category,
        detail="Native code of a library panicked over one of the model's files.",
        hint="Check that transformers loads the model and its tokenizer, and save both again with save_pretrained.",
    )


def as_problem(error: Error) -> JobProblem:
    """Return the error as the job stores it."""
    return JobProblem(code=error.code, category=error.category, detail=error.detail, hint=error.hint)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises RuntimeError on the CPU and a subclass of it on CUDA. Only the text differs from other failures.
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _MEMORY_SIGNS)
