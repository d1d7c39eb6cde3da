"""The one place where a file of a model is opened.

A model is foreign: one of its names may be a link to a secret, a FIFO that holds a reader for good, a device, or a text
of gigabytes. So a file is opened only if it is a regular file inside the model's directory and within the limit for its
kind. Libraries that open files by themselves get paths that were checked here.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from quant_engine.errors import ModelNotFound, UnsafeCheckpoint
from quant_engine.model_files.parsing import json_object

LINKS_SETTING: Final = "QUANTRY_MODEL_LINK_DIRS"

_REPLACE: Final = "Remove or replace the file, and submit the job again."
_MIB: Final = 2**20
MAX_CONFIG_BYTES: Final = _MIB
MAX_INDEX_BYTES: Final = 16 * _MIB
_LIMITS: Final = (
    (re.compile(r"config\.json"), MAX_CONFIG_BYTES),
    (re.compile(r".*\.index\.json"), MAX_INDEX_BYTES),
    (re.compile(r".*\.safetensors"), None),
    # Parsed where a job is submitted. The largest in use have 1.2 MB.
    (re.compile(r".*_config\.json"), 4 * _MIB),
    # The largest tokenizers in use have 35 MB.
    (
        re.compile(r"(tokenizer|tekken|vocab|added_tokens).*\.json|.*\.model(\.v\d+)?|merges\.txt|vocab\.txt"),
        128 * _MIB,
    ),
    # Cards embed pictures; only the first megabyte is read.
    (re.compile(r"readme\.md|.*\.json"), 16 * _MIB),
    (re.compile(r".*"), 4 * _MIB),
)
"""The largest size of a file by its name: of the first pattern that fits."""


@dataclass(frozen=True)
class FileRules:
    """What the operator allows.

    Attributes:
        link_dirs: directories outside of a model into which its links may lead (QUANTRY_MODEL_LINK_DIRS).
    """

    link_dirs: tuple[Path, ...] = ()


DEFAULT_RULES: Final = FileRules()
"""No link may leave the model's directory."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model directory.

    Raises (from every reading member):
        ModelNotFound: there is no such file.
        UnsafeCheckpoint: it is not a regular file, a link that leads outside, or larger than its kind may be.
    """

    directory: Path
    rules: FileRules = DEFAULT_RULES

    def names(self) -> frozenset[str]:
        """The names of everything in the directory, without opening anything; empty if there is no directory."""
        try:
            return frozenset(path.name for path in self.directory.iterdir())
        except OSError:
            return frozenset()

    def has(self, name: str) -> bool:
        """Whether the directory has something of this name: also a link that leads nowhere, or no regular file."""
        return os.path.lexists(self.directory / name)

    def path(self, name: str) -> Path:
        """Return the resolved path of a file that may be opened. ``name`` may have one folder: ``folder/name``."""
        try:
            resolved = (self.directory / name).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            if self.has(name):
                raise self._refused(name, "is a link that leads nowhere") from error
            raise ModelNotFound(
                detail=f"There is no {name} in the model directory {self.directory.name!r}.",
                hint="Check the model id; the directory has to hold config.json, *.safetensors and a tokenizer.",
            ) from error
        if not any(resolved.is_relative_to(root.resolve()) for root in (self.directory, *self.rules.link_dirs)):
            raise self._refused(
                name,
                "is a link that leads out of the model's directory",
                f"Put the file itself there, or have the operator list its real directory in {LINKS_SETTING}.",
            )
        self._check(name, resolved.stat())
        return resolved

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        path = self.path(name)
        try:
            # Never waits, and never follows a link that was put there since the check.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(name, f"can not be opened ({os.strerror(error.errno or 0)})") from error
        try:
            self._check(name, os.fstat(descriptor))
        except UnsafeCheckpoint:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file whose kind has a limit."""
        limit = _limit(name)
        with self.open(name) as file:
            # A file that grows while it is read does not pass the limit either.
            content = file.read() if limit is None else file.read(limit + 1)
        if limit is not None and len(content) > limit:
            raise self._too_large(name, len(content), limit)
        return content

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a file's JSON object. Raises also: InvalidModel if it is none."""
        return json_object(name, self.read_bytes(name))

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while block := file.read(_MIB):
                digest.update(block)
        return digest.hexdigest()

    def folder(self, name: str, suffix: str) -> Iterator[str]:
        """Yield ``folder/name`` of every entry of a folder whose name ends in ``suffix``, sorted.

        Raises:
            UnsafeCheckpoint: there is something else of this name; a link to a folder as well.
        """
        folder = self.directory / name
        if not self.has(name):
            return
        if folder.is_symlink() or not folder.is_dir():
            raise self._refused(name, "is not a folder of the model itself")
        yield from (f"{name}/{path.name}" for path in sorted(folder.iterdir()) if path.suffix == suffix)

    def _check(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._refused(name, "is not a regular file")
        limit = _limit(name)
        if limit is not None and status.st_size > limit:
            raise self._too_large(name, status.st_size, limit)

    def _too_large(self, name: str, size: int, limit: int) -> UnsafeCheckpoint:
        return self._refused(name, f"has {size:,} bytes; the limit for a file of its kind is {limit:,}")

    @staticmethod
    def _refused(name: str, reason: str, hint: str = _REPLACE) -> UnsafeCheckpoint:
        return UnsafeCheckpoint(detail=f"The model's {name[:80]} {reason}.", hint=hint)


def _limit(name: str) -> int | None:
    leaf = name.rpartition("/")[2].lower()
    return next(limit for pattern, limit in _LIMITS if pattern.fullmatch(leaf))
