"""All that a model's files say without its weights: configurations and the headers of its weight files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from quant_engine.errors import InvalidModel, ModelNotFound, UnsafeCheckpoint
from quant_engine.model_files.adapters import adapter_problem
from quant_engine.model_files.headers import INDEX, SINGLE, StoredTensor, checked_index, read_header
from quant_engine.model_files.opening import ModelFiles
from quant_engine.model_files.parsing import REPAIR, safe_config
from quant_engine.model_files.quantization_formats import unsupported

_RETURNED: Final = ("output_attentions", "output_hidden_states", "return_dict", "use_return_dict")
"""They change nothing of the model. transformers refuses the first beside the fast attention, and the last always."""
_PICKLED: Final = (".bin", ".pt", ".pth")
_GGUF: Final = ".gguf"


@dataclass(frozen=True)
class ModelDescription:
    """A model before any weight is read, from a directory or from the Hub.

    Attributes:
        files: what the model's directory holds besides the weights, opened only on demand.
        tensors: what is stored, by name.
    """

    files: ModelFiles
    tensors: Mapping[str, StoredTensor]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sanitized ``config.json``, without settings of what a call returns besides logits."""
        content = safe_config(self.files.read_json("config.json"))
        return {key: value for key, value in content.items() if key not in _RETURNED}

    def optional(self, name: str) -> dict[str, Any] | None:
        """Return another JSON object of the model, or None where it has no such file."""
        return self.files.read_json(name) if self.files.has(name) else None


def describe_directory(files: ModelFiles) -> ModelDescription:
    """Return the description of a model directory.

    Raises:
        ModelNotFound: there is no such directory, or it has no config or no weights.
        UnsafeCheckpoint, InvalidModel: a file can not be used.
        UnsupportedQuantization: the weights are a GGUF file.
        AdapterNotMerged: the directory holds an adapter.
    """
    # An adapter alone has neither a config nor weights, and has to be told as what it is.
    problem = adapter_problem(files)
    tensors = {} if problem is not None else read_tensors(files)
    problem = problem or adapter_problem(files, tensors)
    if problem is not None:
        raise problem
    return ModelDescription(files, tensors)


def weight_files(files: ModelFiles) -> tuple[str, ...]:
    """Return the names of the safetensors files, in order. Errors: see :func:`describe_directory`."""
    return tuple(sorted(set(weight_map(files).values())))


def read_tensors(files: ModelFiles) -> dict[str, StoredTensor]:
    """Return what the weight files hold, by tensor. Errors: see :func:`describe_directory`."""
    indexed = weight_map(files)
    found: dict[str, StoredTensor] = {}
    for name in weight_files(files):
        if not files.has(name):
            raise InvalidModel(detail=f"The weight file {name} that the index names is missing.", hint=REPAIR)
        with files.open(name) as file:
            # From the files' own headers; the index may be wrong.
            stored = read_header(name, file, files.path(name).stat().st_size)
        twice = next((tensor for tensor in stored if tensor in found), None)
        if twice is not None:
            # Only one of the two would be read, and which one depends on the reader.
            raise InvalidModel(
                detail=f"The model stores the tensor {twice[:160]} twice, in {found[twice].file} and in {name}.",
                hint=REPAIR,
            )
        found |= stored
    missing = sorted(set(indexed) - set(found) - {""})
    if missing:
        raise InvalidModel(
            detail=f"The index names tensors that no weight file holds: {', '.join(missing[:3])}.", hint=REPAIR
        )
    return found


def weight_map(files: ModelFiles) -> dict[str, str]:
    """Return the file name of each tensor; a single file is listed under the empty name."""
    names = files.names()
    if not files.directory.is_dir():
        raise ModelNotFound(
            detail=f"There is no model directory {files.directory.name!r}.",
            hint="Check the model id; /v1/capabilities lists the local models.",
        )
    if SINGLE in names:
        return {"": SINGLE}
    if INDEX in names:
        return checked_index(INDEX, files.read_json(INDEX))
    others = sorted(name for name in names if name.endswith(_PICKLED))
    if others:
        raise UnsafeCheckpoint(
            detail=f"The weights are not safetensors: {', '.join(others[:3])}.",
            hint="Convert them with save_pretrained; pickled weights can run code and are never opened.",
        )
    gguf = next((name for name in sorted(names) if name.endswith(_GGUF)), None)
    if gguf is not None:
        raise unsupported("GGUF", f"its weights are {gguf[:120]}")
    raise ModelNotFound(
        detail=f"There are no weights in the model directory {files.directory.name!r}.",
        hint=f"It has to hold {SINGLE}, or {INDEX} and the files that it names.",
    )
