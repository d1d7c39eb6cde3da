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

from quant_engine.errors import InvalidModel, UnsupportedArchitecture
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
from quant_engine.model_files.headers import corrupt
from quant_engine.model_files.parsing import REPAIR

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
        """How the weights are quantized already. Raises UnsupportedQuantization if they can not be read."""
        return source_quantization(self.description)

    @cached_property
    def stored_config(self) -> dict[str, Any]:
        """The sanitized ``config.json`` of dense or quantized weights."""
        return ModelDescription(self.files, {}).config

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, each one checked."""
        return tuple(sorted({self.files.path(tensor.file) for tensor in self.stored.values()}))

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """What the headers say about each tensor."""
        return self.description.tensors

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
        if self.export_dtype is not None:
            return self.export_dtype
        # Bytes and not tensors are counted, so that many small norms do not outvote the matrices.
        counts: dict[str, int] = {}
        for tensor in self.stored.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.bytes
        floating = {name: count for name, count in counts.items() if name in _COMPUTED}
        return _COMPUTED[max(floating, key=lambda name: floating[name])] if floating else torch.float32

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
                    read[name] = file.get_tensor(name).to(device=device, dtype=dtype)
        return read

    def stored_names(self, names: Iterable[str]) -> frozenset[str]:
        """Return the tensors of the checkpoint that reading ``names`` uses."""
        return frozenset(names) & self.stored.keys()

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Do nothing: dense linears need no change."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise corrupt(path.name, "safetensors refuses it") from error
