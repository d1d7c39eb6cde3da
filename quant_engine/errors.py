"""The engine's errors, as one tree. Each error states what is wrong (``detail``) and what to do (``hint``).

EngineError
├── user: the request or its inputs have to change
│   ├── ModelNotFound            model_not_found           no model directory, or no config or weights in it
│   ├── UnsupportedArchitecture  unsupported_architecture  a model class without known sites
│   ├── UnsafeCheckpoint         unsafe_checkpoint         pickled weights, links that leave the model, files too big
│   ├── InvalidModel             invalid_model             files that are damaged or contradict each other
│   ├── UnsupportedQuantization  unsupported_quantization  weights quantized already, in a way not readable here
│   ├── AdapterNotMerged         adapter_not_merged        an adapter (LoRA, …), which is no model without its base
│   ├── DatasetNotFound          dataset_not_found         no text under that name
│   ├── InvalidDataset           invalid_dataset           a row or a file of a data set can not be read
│   ├── NoChatTemplate           no_chat_template          messages for a model without a chat template
│   ├── NotEnoughText            not_enough_text           the text has fewer tokens than asked for
│   ├── NoMatchingLayer          no_matching_layer         the policy's targets match no linear
│   ├── UnsupportedPolicy        unsupported_policy        a valid policy that does not fit this model
│   └── NumericalInstability     numerical_instability     NaN or infinity where a finite number is required
├── capacity: the machine is too small
│   ├── InsufficientMemory       insufficient_memory
│   └── DiskFull                 disk_full
└── platform: a defect of the service
    ├── ModelMisread             model_misread             the model is read differently from how transformers reads it
    ├── EngineUnavailable        engine_not_available      the engine of the serving gate is not on this machine
    └── VerificationFailed       verification_failed       the exported checkpoint does not reproduce the model
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

Category = Literal["user", "platform", "capacity"]


class EngineError(Exception):
    """Base of the tree. ``code`` is for machines, ``detail`` and ``hint`` (the remedy) are for people."""

    code: ClassVar[str] = "engine_error"
    category: ClassVar[Category] = "platform"

    def __init__(self, *, detail: str, hint: str) -> None:
        super().__init__(f"{detail} {hint}")
        self.detail = detail
        self.hint = hint


class ModelNotFound(EngineError):
    """The model directory, its config or its weights are missing."""

    code = "model_not_found"
    category = "user"


class UnsupportedArchitecture(EngineError):
    """The config names a model class that the engine has no sites for."""

    code = "unsupported_architecture"
    category = "user"


class UnsafeCheckpoint(EngineError):
    """Reading a file of the model could do harm: pickled weights, a link out of the model, a size no real file has."""

    code = "unsafe_checkpoint"
    category = "user"


class InvalidModel(EngineError):
    """The model's files contradict each other, or one of them is damaged."""

    code = "invalid_model"
    category = "user"


class UnsupportedQuantization(EngineError):
    """The model is already quantized, in a format or with codes that can not be read."""

    code = "unsupported_quantization"
    category = "user"


class AdapterNotMerged(EngineError):
    """The files are an adapter of another model, or a model and an adapter in one directory."""

    code = "adapter_not_merged"
    category = "user"


class DatasetNotFound(EngineError):
    """No text is known under the dataset's name."""

    code = "dataset_not_found"
    category = "user"


class InvalidDataset(EngineError):
    """A file of a data set, or one of its rows, is not what a data set has to hold."""

    code = "invalid_dataset"
    category = "user"


class NoChatTemplate(EngineError):
    """The data set holds messages, and the model has no chat template that turns them into text."""

    code = "no_chat_template"
    category = "user"

    @classmethod
    def of_model(cls) -> "NoChatTemplate":
        """Return the error, with its one text."""
        return cls(
            detail="The data set holds messages, and the model's tokenizer has no chat template to render them.",
            hint="Use an instruction-tuned model, put a chat_template.jinja beside its tokenizer, or give plain text: "
            '{"texts": [...]} in the request, or rows that have "text".',
        )


class NotEnoughText(EngineError):
    """The text holds fewer tokens than calibration or evaluation asks for."""

    code = "not_enough_text"
    category = "user"


class NoMatchingLayer(EngineError):
    """The policy's targets match no linear of the model."""

    code = "no_matching_layer"
    category = "user"


class UnsupportedPolicy(EngineError):
    """The policy is valid in itself but does not fit this model."""

    code = "unsupported_policy"
    category = "user"


class NumericalInstability(EngineError):
    """NaN or infinity appeared where a finite number is required."""

    code = "numerical_instability"
    category = "user"


class InsufficientMemory(EngineError):
    """One block and its working set do not fit into memory."""

    code = "insufficient_memory"
    category = "capacity"


class DiskFull(EngineError):
    """The disk, or the quota on it, can not take what has to be written."""

    code = "disk_full"
    category = "capacity"


class ModelMisread(EngineError):
    """The model as it is read here is not the one that transformers makes of the same files."""

    code = "model_misread"
    category = "platform"


class EngineUnavailable(EngineError):
    """The engine that a checkpoint has to be served in, for the gate, is not on this machine."""

    code = "engine_not_available"
    category = "platform"


class VerificationFailed(EngineError):
    """The exported checkpoint, loaded afresh, does not give the quantized model's logits."""

    code = "verification_failed"
    category = "platform"


def is_native_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of a library's native code, which is no ``Exception``.

    Native code panics over an input that its author thought impossible: a file, here always one of the model's.
    """
    # Every library that uses pyo3 has a class of its own of this name, and none of them can be imported.
    return not isinstance(error, Exception) and type(error).__name__ == "PanicException"


_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
# The operating system's texts of these two numbers.
_DISK_MESSAGES = ("No space left on device", "Disk quota exceeded")


@contextmanager
def disk_full_as_error(what: str) -> Iterator[None]:
    """Raise :class:`DiskFull` for ENOSPC and EDQUOT inside the block.

    Some libraries (safetensors) wrap the operating system's error in their own type and store only its text. So the
    text is searched too.

    Args:
        what: the thing that is being written, for the message.
    """
    try:
        yield
    except EngineError:
        # It already has a detail and a hint, and its text may quote the operating system's.
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _DISK_ERRNOS or any(message in str(error) for message in _DISK_MESSAGES):
            raise DiskFull(
                detail=f"The disk filled up while writing {what}.",
                hint="Free some space, or move the data directory to a larger disk, and retry the job.",
            ) from error
        raise
