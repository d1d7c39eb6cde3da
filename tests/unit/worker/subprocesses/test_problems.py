"""Which problem an exception in the runner becomes."""

import errno

import pytest
import torch

from quant_engine.errors import NotEnoughText
from worker.subprocesses.problems import as_error, as_problem


@pytest.mark.parametrize(
    ("error", "code", "category"),
    [
        (NotEnoughText(detail="short", hint="more"), "not_enough_text", "user"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "capacity"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full", "capacity"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "insufficient_memory", "capacity"),
        (MemoryError(), "insufficient_memory", "capacity"),
        (torch.OutOfMemoryError("CUDA out of memory."), "insufficient_memory", "capacity"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "insufficient_memory", "capacity"),
        (RuntimeError("shape mismatch"), "internal_error", "platform"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/secret/path"), "internal_error", "platform"),
    ],
)  # fmt: skip
def test_codes(error: Exception, code: str, category: str) -> None:
    told = as_error(error)
    assert (told.code, told.category) == (code, category)
    assert told.detail
    assert told.hint


def test_torch_really_says_what_we_look_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert as_error(caught.value).code == "insufficient_memory"


def test_an_unforeseen_error_tells_nothing_of_its_text() -> None:
    told = as_error(KeyError("/data/tenant-7/secret"))
    assert "secret" not in told.detail + told.hint
    assert "KeyError" in told.detail


def test_a_message_becomes_the_jobs_problem() -> None:
    problem = as_problem(as_error(NotEnoughText(detail="short", hint="more"))).as_json("job_1")
    assert {"code": "not_enough_text", "category": "user", "detail": "short", "hint": "more"}.items() <= problem.items()
