"""Read a dense safetensors checkpoint from disk, tensor by tensor, after checking its files.

A header is a length and a JSON text. A hostile header can cost gigabytes to open, and a truncated one makes a reader
crash. So both are checked first, with a bounded read. Weights stay memory-mapped: only used tensors need memory.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from quant_engine.errors import ModelNotFound, UnsafeCheckpoint, UnsupportedArchitecture

MAX_HEADER_BYTES: Final = 16 * 2**20
MAX_TENSORS: Final = 100_000
MAX_CONFIG_BYTES: Final = 2**20
_DTYPES: Final = (
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
    # Quantized checkpoints also hold codes and scales of eight bits.
    | {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
)
_COMPUTED: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DOWNLOAD_AGAIN: Final = "Download or export the model again, as safetensors, and retry."
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"


def safe_config(value: Any) -> Any:
    """Return the content of ``config.json`` without anything that could make a library run foreign code.

    Removes, at every depth, ``auto_map``, ``trust_remote_code`` and every key that starts with an underscore
    (CVE-2026-4372 and CVE-2026-5241 entered through those).
    """
    if isinstance(value, dict):
        return {
            key: safe_config(item)
            for key, item in value.items()
            if key not in ("auto_map", "trust_remote_code") and not key.startswith("_")
        }
    if isinstance(value, list):
        return [safe_config(item) for item in value]
    return value


@dataclass(frozen=True)
class CheckpointSource:
    """A model directory. Every file is read only when a member needs it.

    Attributes:
        export_dtype: the floating-point type of an export's dense tensors; None for the type of most of the weights.

    Raises (from every reading member):
        ModelNotFound: the directory, its config or its weights are missing.
        UnsafeCheckpoint: a file is corrupt, truncated, too big to open, or not safetensors.
    """

    directory: Path
    export_dtype: torch.dtype | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sanitized ``config.json`` of a dense model.

        Raises:
            UnsupportedArchitecture: the weights are quantized.
        """
        if self.is_quantized:
            raise UnsupportedArchitecture(
                detail="The model is already quantized: its config has a quantization_config.",
                hint="Give the dense model that it was made from, or measure it as it is: policy.preset 'evaluate'.",
            )
        return self.stored_config

    @property
    def is_quantized(self) -> bool:
        """Whether the configuration has a ``quantization_config``."""
        return self.stored_config.get("quantization_config") is not None

    @cached_property
    def stored_config(self) -> dict[str, Any]:
        """The sanitized ``config.json`` of dense or quantized weights."""
        path = self.directory / "config.json"
        if not path.is_file():
            raise ModelNotFound(
                detail=f"There is no config.json in the model directory {self.directory.name!r}.",
                hint="Check the model id; the directory has to hold config.json, *.safetensors and a tokenizer.",
            )
        return dict(safe_config(_read_json(path, MAX_CONFIG_BYTES)))

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files, each one checked."""
        shards = tuple(sorted({self.directory / name for name in self._weight_map.values()}))
        for shard in shards:
            if not shard.is_file():
                raise UnsafeCheckpoint(
                    detail=f"The weight file {shard.name} that the index names is missing.", hint=_DOWNLOAD_AGAIN
                )
        return shards

    @cached_property
    def tensors(self) -> dict[str, Path]:
        """The file that holds each tensor."""
        # From the files' own headers; the index may be wrong. A single file is listed under the empty name.
        located = {name: shard for shard in self.shards for name in _checked_header(shard)}
        missing = sorted(set(self._weight_map) - set(located) - {""})
        if missing:
            raise UnsafeCheckpoint(
                detail=f"The index names tensors that no weight file holds: {', '.join(missing[:3])}.",
                hint=_DOWNLOAD_AGAIN,
            )
        return located

    def locate(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        if name not in self.tensors:
            raise UnsafeCheckpoint(detail=f"The checkpoint holds no tensor {name}.", hint=_DOWNLOAD_AGAIN)
        return self.tensors[name]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: tuple(entry["shape"]) for shard in self.shards for name, entry in _checked_header(shard).items()}

    @cached_property
    def stored_bytes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        spans = {name: entry["data_offsets"] for shard in self.shards for name, entry in _checked_header(shard).items()}
        return {name: end - begin for name, (begin, end) in spans.items()}

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.stat().st_size for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the config and every weight file. A resumed job compares it with that of the first attempt."""
        digest = hashlib.sha256((self.directory / "config.json").read_bytes())
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
        for shard in self.shards:
            for entry in _checked_header(shard).values():
                begin, end = entry["data_offsets"]
                counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + end - begin
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

    def attach(self, module: nn.Module, *, prefix: str, device: torch.device | str) -> None:
        """Do nothing: dense linears need no change."""

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        """The file name of each tensor; a single file is listed under the empty name."""
        if not self.directory.is_dir():
            raise ModelNotFound(
                detail=f"There is no model directory {self.directory.name!r}.",
                hint="Check the model id; /v1/capabilities lists the local models.",
            )
        if (self.directory / _SINGLE).is_file():
            return {"": _SINGLE}
        if (self.directory / _INDEX).is_file():
            return _checked_index(self.directory / _INDEX)
        others = sorted(
            path.name for path in self.directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")
        )
        if others:
            raise UnsafeCheckpoint(
                detail=f"The weights are not safetensors: {', '.join(others[:3])}.",
                hint="Convert them with save_pretrained; pickled weights can run code and are never opened.",
            )
        raise ModelNotFound(
            detail=f"There are no weights in the model directory {self.directory.name!r}.",
            hint=f"It has to hold {_SINGLE}, or {_INDEX} and the files that it names.",
        )


def _read_json(path: Path, limit: int) -> Any:
    size = path.stat().st_size
    if size > limit:
        raise UnsafeCheckpoint(detail=f"{path.name} is {size:,} bytes; the limit is {limit:,}.", hint=_DOWNLOAD_AGAIN)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsafeCheckpoint(detail=f"{path.name} is not JSON.", hint=_DOWNLOAD_AGAIN) from error
    if not isinstance(content, dict):
        raise UnsafeCheckpoint(detail=f"{path.name} is not a JSON object.", hint=_DOWNLOAD_AGAIN)
    return content


def _checked_index(path: Path) -> dict[str, str]:
    weight_map = _read_json(path, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > MAX_TENSORS:
        raise UnsafeCheckpoint(detail=f"{path.name} has no usable weight_map.", hint=_DOWNLOAD_AGAIN)
    for name in set(weight_map.values()):
        # A name with a directory could point anywhere on the disk.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeCheckpoint(
                detail=f"{path.name} names a weight file outside its directory or of another kind.",
                hint=_DOWNLOAD_AGAIN,
            )
    return weight_map


def _checked_header(path: Path) -> dict[str, Any]:
    """Return the header's tensor entries, after every check that needs no library."""
    size = path.stat().st_size
    with path.open("rb") as file:
        # The first eight bytes are the header's length. A shorter file gets its own size, which is refused below.
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > MAX_HEADER_BYTES:
            raise _corrupt(path, f"its header claims {length:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
        if 8 + length > size:
            raise _corrupt(path, f"the file ends inside its header, after {size:,} bytes")
        text = file.read(length)
    try:
        # Deeply nested JSON ends in a RecursionError.
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(entries) > MAX_TENSORS:
        raise _corrupt(path, f"it claims {len(entries):,} tensors, the limit is {MAX_TENSORS:,}")
    # The tensors have to end exactly where the file ends: a truncated file is shorter.
    end = max((_checked_end(path, name, entry) for name, entry in entries.items()), default=0)
    if 8 + length + end != size:
        raise _corrupt(path, f"its header describes {8 + length + end:,} bytes, but the file has {size:,}")
    return entries


def _checked_end(path: Path, name: str, entry: Any) -> int:
    """Return where a tensor's bytes end, after checking its offsets against its shape and type."""
    try:
        begin, end = entry["data_offsets"]
        count = 1
        for extent in entry["shape"]:
            count *= extent
        consistent = 0 <= begin <= end and end - begin == count * _DTYPES[entry["dtype"]]
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"the entry of tensor {name[:80]!r} is malformed or of an unsupported type") from error
    if not consistent:
        raise _corrupt(path, f"the size of tensor {name[:80]!r} does not match its shape")
    return int(end)


def _corrupt(path: Path, reason: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        detail=f"{path.name} is not a usable safetensors file: {reason}.",
        hint=_DOWNLOAD_AGAIN,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise _corrupt(path, "safetensors refuses it") from error
