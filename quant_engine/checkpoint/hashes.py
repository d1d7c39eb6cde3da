"""Hash the files of a checkpoint, for its card and to compare two checkpoints."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from quant_engine.errors import InvalidModel

CARD: Final = "README.md"
CARD_DATA: Final = "quantry.json"
"""The card as data. It lists every file except itself and the card; the card lists every file except itself."""

_MAX_CARD_DATA_BYTES: Final = 64 * 2**20
_HINT: Final = "Use the checkpoint as it was exported, or export it again."


@dataclass(frozen=True)
class FileHash:
    """One file.

    Attributes:
        path: relative to the checkpoint's directory, with forward slashes.
        bytes: its size.
        sha256: of its content, in hexadecimal.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    """Files in the order of their paths."""

    files: tuple[FileHash, ...]

    @property
    def digest(self) -> str:
        """``sha256:…`` over every path, size and hash. It is equal for equal directories, on any machine."""
        listed = json.dumps([asdict(file) for file in self.files], sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


def checkpoint_manifest(directory: Path, *, without: Collection[str] = ()) -> CheckpointManifest:
    """Read and hash every file below ``directory``, except the paths in ``without``.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {directory.name!r}")
    # Sorted by the path as text, because the order of a directory differs between machines.
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return CheckpointManifest(
        tuple(
            FileHash(path=name, bytes=found[name].stat().st_size, sha256=file_sha256(found[name]))
            for name in sorted(found.keys() - set(without))
        )
    )


def recorded_manifest(directory: Path) -> CheckpointManifest:
    """Return the files that ``quantry.json`` lists, without reading them: all except itself and the card.

    Raises:
        InvalidModel: ``quantry.json`` is missing, or an export did not write it.
    """
    path = directory / CARD_DATA
    try:
        if path.stat().st_size > _MAX_CARD_DATA_BYTES:
            raise ValueError("too large")
        return CheckpointManifest(tuple(_entry(entry) for entry in json.loads(path.read_bytes())["files"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidModel(detail=f"The checkpoint has no usable {CARD_DATA}.", hint=_HINT) from error


def changed_files(directory: Path) -> list[str]:
    """Return the paths that are missing, added, or differ from ``quantry.json``; empty for an unchanged checkpoint.

    Raises:
        InvalidModel: there is no usable ``quantry.json``.
    """
    recorded = set(recorded_manifest(directory).files)
    present = set(checkpoint_manifest(directory, without=(CARD, CARD_DATA)).files)
    # A changed file is in both sets, with two hashes, and is reported once.
    return sorted({file.path for file in recorded ^ present})


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(entry: Any) -> FileHash:
    file = FileHash(path=entry["path"], bytes=entry["bytes"], sha256=entry["sha256"])
    if not (isinstance(file.path, str) and isinstance(file.bytes, int) and isinstance(file.sha256, str)):
        raise TypeError("a file's entry has other types")
    return file
