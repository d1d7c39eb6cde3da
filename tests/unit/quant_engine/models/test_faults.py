"""A library that fails over a model's files says so of the model; memory, the disk and our own errors pass."""

import errno
import json
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer

from quant_engine.errors import DiskFull, InvalidModel, is_native_panic
from quant_engine.models import fault_of_the_model
from tests.tiny_models import panicking_tokenizer


def panic() -> None:
    Tokenizer.from_str(json.dumps(panicking_tokenizer())).encode("two words")


def allocate() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_panic_of_native_code_is_no_exception_and_is_recognized() -> None:
    with pytest.raises(BaseException, match="chunk size") as caught:
        panic()
    assert not isinstance(caught.value, Exception)
    assert is_native_panic(caught.value)
    assert not any(is_native_panic(each) for each in (KeyboardInterrupt(), SystemExit(), ValueError()))


@pytest.mark.parametrize(
    "fail",
    [
        panic,
        *map(raising, (IndexError("9"), KeyError("rope"), RecursionError(), AssertionError(), ZeroDivisionError())),
        lambda: torch.ones(2, 3) @ torch.ones(2, 3),
    ],
)
def test_a_librarys_failure_is_the_models_fault(fail: Callable[[], None]) -> None:
    with (
        pytest.raises(InvalidModel, match="Running the original failed") as caught,
        fault_of_the_model("Running the original"),
    ):
        fail()
    assert caught.value.category == "user"


@pytest.mark.parametrize(
    ("fail", "raised"),
    [
        (allocate, RuntimeError),
        (raising(MemoryError()), MemoryError),
        (raising(torch.OutOfMemoryError("CUDA out of memory.")), torch.OutOfMemoryError),
        (raising(OSError(errno.EIO, "Input/output error")), OSError),
        (raising(DiskFull(detail="full", hint="free")), DiskFull),
        (raising(KeyboardInterrupt()), KeyboardInterrupt),
    ],
)
def test_what_is_not_the_models_passes(fail: Callable[[], None], raised: type[BaseException]) -> None:
    with pytest.raises(raised), fault_of_the_model("Running the original"):
        fail()
