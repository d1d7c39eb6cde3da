"""Which problem an exception in the runner becomes."""

import errno
import json

import pytest
import torch
from tokenizers import Tokenizer

from quant_engine.errors import NotEnoughText
from tests.tiny_models import panicking_tokenizer
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


def test_a_panic_of_native_code_is_the_models_fault() -> None:
    with pytest.raises(BaseException, match="chunk size") as caught:
        Tokenizer.from_str(json.dumps(panicking_tokenizer())).encode("two words")
    told = as_error(caught.value)
    assert (told.code, told.category) == ("invalid_model", "user")


def test_an_unforeseen_error_tells_nothing_of_its_text() -> None:
    told = as_error(KeyError("/data/tenant-7/secret"))
    assert "secret" not in told.detail + told.hint
    assert "KeyError" in told.detail


def test_a_message_becomes_the_jobs_problem() -> None:
    problem = as_problem(as_error(NotEnoughText(detail="short", hint="more"))).as_json("job_1")
    assert {"code": "not_enough_text", "category": "user", "detail": "short", "hint": "more"}.items() <= problem.items()
