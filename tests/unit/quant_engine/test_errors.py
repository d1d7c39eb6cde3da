"""Every error of the tree has a code, a category, and a remedy for a person."""

import errno

import pytest

from quant_engine import errors
from quant_engine.errors import DiskFull, EngineError, ModelNotFound, disk_full_as_error


def test_codes_are_unique_and_categories_known() -> None:
    kinds = EngineError.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds) == 18
    assert {kind.category for kind in kinds} == {"user", "capacity", "platform"}
    for kind in kinds:
        assert kind.code in (errors.__doc__ or "")


def test_an_error_reads_as_detail_and_remedy() -> None:
    error = ModelNotFound(detail="There is no model.", hint="Check its id.")
    assert str(error) == "There is no model. Check its id."
    assert (error.code, error.category) == ("model_not_found", "user")


@pytest.mark.parametrize(
    "cause", [OSError(errno.ENOSPC, "x"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_recognized_however_it_is_wrapped(cause: Exception) -> None:
    with pytest.raises(DiskFull, match="while writing a record"), disk_full_as_error("a record"):
        raise cause


def test_an_engine_error_is_left_as_it_is() -> None:
    with pytest.raises(ModelNotFound), disk_full_as_error("a record"):
        raise ModelNotFound(detail="No space left on device.", hint="")
