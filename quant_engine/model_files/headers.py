"""Read and check the headers of safetensors files, and the index that names the files.

A header is a length and a JSON text. A hostile header can cost gigabytes to open, and a truncated one makes a reader
crash. So both are checked first, with a bounded read.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO, Final

from quant_engine.errors import InvalidModel, UnsafeCheckpoint
from quant_engine.model_files.parsing import REPAIR

MAX_HEADER_BYTES: Final = 16 * 2**20
MAX_TENSORS: Final = 100_000
MAX_NAME: Final = 512
"""Characters of a tensor's name. Real ones have fewer than a hundred."""
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
DTYPE_BYTES: Final = (
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
    | {"U16": 2, "U32": 4, "U64": 8}
    # Quantized checkpoints also hold codes and scales of eight bits.
    | {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
)
FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""The types whose values are weights as they are; those of other types need scales."""


@dataclass(frozen=True)
class StoredTensor:
    """What a header says about a tensor.

    Attributes:
        dtype: as safetensors names it (``BF16``).
        file: the name of the file that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str


def read_header(name: str, file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, after every check that needs no library.

    Args:
        size: of the whole file in bytes.

    Raises:
        UnsafeCheckpoint: the header claims more than any real one does.
        InvalidModel: the file is truncated, or its header contradicts itself.
    """
    # The first eight bytes are the header's length. A shorter file gets its own size, which is refused below.
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > MAX_HEADER_BYTES:
        raise UnsafeCheckpoint(
            detail=f"{name} is not a usable safetensors file: its header claims {length:,} bytes, "
            f"the limit is {MAX_HEADER_BYTES:,}.",
            hint=REPAIR,
        )
    if 8 + length > size:
        raise corrupt(name, f"the file ends inside its header, after {size:,} bytes")
    return parse_header(name, file.read(length), size=size)


def parse_header(name: str, text: bytes, *, size: int) -> dict[str, StoredTensor]:
    """Return the tensors that a header's JSON text names. Arguments and errors: see :func:`read_header`."""
    try:
        # Deeply nested JSON ends in a RecursionError.
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise corrupt(name, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise corrupt(name, "its header is not a JSON object")
    entries = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
    if len(entries) > MAX_TENSORS:
        raise UnsafeCheckpoint(
            detail=f"{name} claims {len(entries):,} tensors; the limit is {MAX_TENSORS:,}.", hint=REPAIR
        )
    if any(len(tensor) > MAX_NAME for tensor in entries):
        raise corrupt(name, f"the name of one of its tensors has more than {MAX_NAME} characters")
    # The tensors have to end exactly where the file ends: a truncated file is shorter.
    end = max((_checked_end(name, tensor, entry) for tensor, entry in entries.items()), default=0)
    if 8 + len(text) + end != size:
        raise corrupt(name, f"its header describes {8 + len(text) + end:,} bytes, but the file has {size:,}")
    return {
        tensor: StoredTensor(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
            file=name,
        )
        for tensor, entry in entries.items()
    }


def checked_index(name: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Return an index's ``weight_map``: the file name of each tensor.

    Raises:
        InvalidModel: it has none, or one of the wrong shape.
        UnsafeCheckpoint: it names more tensors than any real one, or a file outside the directory.
    """
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InvalidModel(
            detail=f"{name} has no usable weight_map: it has to be an object of file names.", hint=REPAIR
        )
    if len(weight_map) > MAX_TENSORS:
        raise UnsafeCheckpoint(
            detail=f"{name} names {len(weight_map):,} tensors; the limit is {MAX_TENSORS:,}.", hint=REPAIR
        )
    for file in set(weight_map.values()):
        # A name with a directory could point anywhere on the disk.
        if PurePath(file).name != file or not file.endswith(".safetensors"):
            raise UnsafeCheckpoint(
                detail=f"{name} names a weight file outside its directory or of another kind.", hint=REPAIR
            )
    return weight_map


def corrupt(name: str, reason: str) -> InvalidModel:
    """Return the error for a safetensors file that is damaged."""
    return InvalidModel(detail=f"{name} is not a usable safetensors file: {reason}.", hint=REPAIR)


def _checked_end(name: str, tensor: str, entry: Any) -> int:
    """Return where a tensor's bytes end, after checking its offsets against its shape and type."""
    try:
        begin, end = entry["data_offsets"]
        count = 1
        for extent in entry["shape"]:
            count *= extent
        consistent = (
            all(type(each) is int and each >= 0 for each in (begin, end, *entry["shape"]))
            and begin <= end
            and end - begin == count * DTYPE_BYTES[entry["dtype"]]
        )
    except (TypeError, KeyError, ValueError) as error:
        raise corrupt(name, f"the entry of tensor {tensor[:80]!r} is malformed or of an unsupported type") from error
    if not consistent:
        raise corrupt(name, f"the size of tensor {tensor[:80]!r} does not match its shape")
    return int(end)
