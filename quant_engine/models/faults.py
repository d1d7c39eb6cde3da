"""Tell a failure inside a library that reads or computes a foreign model as a fault of that model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from huggingface_hub.errors import StrictDataclassError

from quant_engine.errors import EngineError, InvalidModel, is_native_panic

# The errors that libraries raise for values that they can not use. An OSError is not among them: the disk has it.
_MISFITS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    StrictDataclassError,
)


@contextmanager
def fault_of_the_model(doing: str) -> Iterator[None]:
    """Raise :class:`InvalidModel` for a library's failure inside the block, also for a panic of native code.

    Args:
        doing: what the block does, as the subject of "failed".
    """
    try:
        yield
    except (EngineError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        # Memory is the machine's. torch raises a plain RuntimeError for it on the CPU.
        if not (is_native_panic(error) or isinstance(error, _MISFITS)) or "memory" in str(error).lower():
            raise
        raise InvalidModel(
            detail=f"{doing} failed ({type(error).__name__}): the model's files do not fit each other.",
            hint="Check that plain transformers loads and runs the model, and repair its files.",
        ) from error
