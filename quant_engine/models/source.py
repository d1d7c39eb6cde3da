"""Read a dense safetensors checkpoint from disk, tensor by tensor, after checking its files.

Weights stay memory-mapped: only used tensors need memory.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from quant_engine.errors import InvalidModel, UnsupportedArchitecture, is_native_panic
from quant_engine.interface.architectures import find_architecture
from quant_engine.interface.layout import model_layout
from quant_engine.model_files import (
    DEFAULT_RULES,
    FileRules,
    ModelDescription,
    ModelFiles,
    QuantizationKind,
    SourceQuantization,
    StoredTensor,
    describe_directory,
    has_quantization_section,
    source_quantization,
)
from quant_engine.model_files.headers import FLOATING, corrupt
from quant_engine.model_files.names import end_names, parameter_names
from quant_engine.model_files.parsing import REPAIR

_COMPARED_ROWS: Final = 8192
_NAMED: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COMPUTED: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class CheckpointSource:
    """A model directory. Every file is read only when a member needs it.

    Attributes:
        export_dtype: the floating-point type of an export's dense tensors; None for the type of most of the weights.

    Raises (from every reading member):
        ModelNotFound: the directory, its config or its weights are missing.
        UnsafeCheckpoint: reading a file could do harm (:mod:`quant_engine.model_files.opening`).
        InvalidModel: a file is damaged, or the files contradict each other.
    """

    directory: Path
    export_dtype: torch.dtype | None = None
    rules: FileRules = DEFAULT_RULES

    @property
    def files(self) -> ModelFiles:
        """The directory's files; every one is opened through this."""
        return ModelFiles(self.directory, self.rules)

    @cached_property
    def description(self) -> ModelDescription:
        """The configuration, and what the headers say."""
        return describe_directory(self.files)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sanitized ``config.json`` of a dense model.

        Raises:
            UnsupportedArchitecture: the weights are quantized.
        """
        if self.is_quantized:
            raise UnsupportedArchitecture(
                detail="The model is already quantized, and was opened as a dense one.",
                hint="Give the dense model that it was made from, or measure it as it is: policy.preset 'evaluate'.",
            )
        return self.stored_config

    @cached_property
    def is_quantized(self) -> bool:
        """Whether the model is quantized already, by any sign (:mod:`quant_engine.model_files.quantization_signs`)."""
        if has_quantization_section(self.stored_config):
            return True
        return self.quantization.kind is not QuantizationKind.NONE

    @cached_property
    def quantization(self) -> SourceQuantization:
        """How the weights are quantized already, by the names of the model class.

        Raises:
            UnsupportedQuantization: they can not be read.
        """
        return source_quantization(self.description).renamed(self.names)

    @cached_property
    def stored_config(self) -> dict[str, Any]:
        """The sanitized ``config.json`` of dense or quantized weights, untied where the stored weights are."""
        config = ModelDescription(self.files, {}).config
        architecture = find_architecture(config)
        # Only the weights can say that a model is not tied in spite of its configuration, so transformers asks them.
        if architecture is None or not model_layout(config, architecture).ties or not self._head_differs(config):
            return config
        return config | {"tie_word_embeddings": False}

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The stored name of each tensor, by the name that it has in the model class."""
        stored = self.description.tensors
        architecture = find_architecture(self.description.config) if self.files.has("config.json") else None
        if architecture is None:
            return {name: name for name in stored}
        return parameter_names(stored, model_layout(self.description.config, architecture))

    def stored_names(self, dense: Iterable[str]) -> frozenset[str]:
        """Return the stored tensors that are read for these parameters of the model class."""
        return frozenset(self.names[name] for name in dense if name in self.names)

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, each one checked."""
        return tuple(sorted({self.files.path(tensor.file) for tensor in self.stored.values()}))

    @cached_property
    def stored(self) -> Mapping[str, StoredTensor]:
        """What the headers say about each tensor, by its name in the model class."""
        return {name: self.description.tensors[stored] for name, stored in self.names.items()}

    @cached_property
    def tensors(self) -> dict[str, Path]:
        """The file that holds each tensor."""
        paths = {name: self.files.path(name) for name in {tensor.file for tensor in self.stored.values()}}
        return {name: paths[tensor.file] for name, tensor in self.stored.items()}

    def locate(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        if name not in self.tensors:
            raise InvalidModel(detail=f"The checkpoint holds no tensor {name}.", hint=REPAIR)
        return self.tensors[name]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    @cached_property
    def stored_bytes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        return {name: tensor.bytes for name, tensor in self.stored.items()}

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.stat().st_size for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the config and every weight file. A resumed job compares it with that of the first attempt."""
        digest = hashlib.sha256(self.files.read_bytes("config.json"))
        for shard in self.shards:
            with shard.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The floating-point type of an export's dense tensors: ``export_dtype``, or that of most of the weights."""
        return self._stored_dtype if self.export_dtype is None else self.export_dtype

    @cached_property
    def computed_dtype(self) -> torch.dtype:
        """The type in which ``from_pretrained`` computes the model: that of its configuration, else of its weights."""
        return self.named_dtype or self._stored_dtype

    @property
    def named_dtype(self) -> torch.dtype | None:
        """The type that the configuration names; None where it names none of these that models compute in."""
        named = self.stored_config.get("dtype", self.stored_config.get("torch_dtype"))
        return _NAMED.get(str(named).removeprefix("torch."))

    @cached_property
    def _stored_dtype(self) -> torch.dtype:
        return prevailing_dtype(self.stored.values()) or torch.float32

    def read(
        self, names: Iterable[str], *, dtype: torch.dtype | None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the named tensors as ``dtype`` on ``device``; without a cast they are views of the memory-mapped file.

        Without a ``dtype`` they have the type in which they are stored.
        """
        # Each file is opened once for all of its tensors.
        by_shard: dict[Path, list[str]] = {}
        for name in names:
            by_shard.setdefault(self.locate(name), []).append(name)
        read: dict[str, Tensor] = {}
        for shard, wanted in by_shard.items():
            with _opened(shard) as file:
                for name in wanted:
                    read[name] = file.get_tensor(self.names[name]).to(device=device, dtype=dtype)
        return read

    def _head_differs(self, config: Mapping[str, Any]) -> bool:
        """Return whether a head is stored whose values are not those of the embedding."""
        embedding, head = end_names(model_layout(config))
        if embedding not in self.names or head not in self.names:
            return False
        # Codes are compared with nothing: what they mean depends on their scales.
        if any(self.stored[name].dtype not in FLOATING for name in (embedding, head)):
            return True
        both = self.read([embedding, head], dtype=None)
        if both[embedding].shape != both[head].shape:
            return True
        # In parts, so that a large pair of different types is never held in fp32 as a whole.
        rows = zip(both[embedding].split(_COMPARED_ROWS), both[head].split(_COMPARED_ROWS), strict=True)
        wide = torch.promote_types(both[embedding].dtype, both[head].dtype)
        return not all(torch.equal(first.to(wide), second.to(wide)) for first, second in rows)

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Do nothing: dense linears need no change."""


def prevailing_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype | None:
    """Return the floating-point type of most of the tensors' bytes; None where there is none."""
    # Bytes and not tensors are counted, so that many small norms do not outvote the matrices.
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in _COMPUTED:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.bytes
    return _COMPUTED[max(counts, key=lambda name: counts[name])] if counts else None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except BaseException as error:
        if isinstance(error, SafetensorError) or is_native_panic(error):
            raise corrupt(path.name, "safetensors refuses it") from error
        raise
