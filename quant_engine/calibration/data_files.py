"""Read the files of a data set: plain text, and rows of JSON Lines or Parquet, one at a time.

The files are not trusted: only a regular file inside the folder is opened, and a row longer than
:data:`MAX_ROW_BYTES` is refused, so that a file of any size needs little memory.
"""

import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote

from quant_engine.errors import InvalidDataset

MAX_ROW_BYTES: Final = 16 << 20

_ROWS_AT_ONCE: Final = 64
_DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error)
_WANTED: Final = 'A row is one JSON object in one line, with "text" or "messages".'


@dataclass(frozen=True)
class Row:
    """One row: its fields, and where it is, for errors (``train.jsonl, line 3``)."""

    where: str
    fields: dict[str, Any]


def is_text(path: Path) -> bool:
    """Return whether the file is plain text, and so has no rows."""
    return path.name.lower().endswith((".txt", ".txt.gz"))


def shown_name(path: Path) -> str:
    """Return the name of a file for people; a fetched file has the escaped path of its repository as its name."""
    return unquote(path.name)


def read_text(path: Path, max_characters: int) -> str:
    """Return the beginning of a text file. What is not UTF-8 becomes U+FFFD.

    Raises:
        InvalidDataset: it is no regular file inside its folder, or its compressed data is damaged.
    """
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8", errors="replace") as text:
        try:
            return text.read(max_characters)
        except _DAMAGED as error:
            raise _damaged(path) from error


def rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a JSON Lines or a Parquet file, in order.

    Args:
        columns: the fields to read. A Parquet file is not read beyond these.

    Raises:
        InvalidDataset: the file can not be opened or is damaged, or a row is no JSON object or is too long.
    """
    with _opened(path) as file:
        if path.name.lower().endswith(".parquet"):
            yield from _parquet_rows(file, path, columns)
        else:
            yield from _json_rows(file, path)


def _json_rows(file: BinaryIO, path: Path) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        where = f"{shown_name(path)}, line {number}"
        try:
            line = file.readline(MAX_ROW_BYTES + 1)
        except _DAMAGED as error:
            raise _damaged(path) from error
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            raise InvalidDataset(
                detail=f"{where}: the line is longer than {MAX_ROW_BYTES:,} bytes.",
                hint=f"{_WANTED} Split longer texts, or store them as .txt.",
            )
        if line.strip():
            yield Row(where, _json_object(line, where))


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8-sig"))
    # A line may be nested deeper than Python can follow.
    except (ValueError, RecursionError) as error:
        hint = _WANTED
        if line.lstrip().startswith(b"["):
            hint += " This file seems to be one JSON array: write each of its objects into a line of its own."
        raise InvalidDataset(detail=f"{where}: this is not valid JSON in UTF-8.", hint=hint) from error
    if not isinstance(found, dict):
        raise InvalidDataset(detail=f"{where}: this is JSON, but no object.", hint=_WANTED)
    return found


def _parquet_rows(file: BinaryIO, path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    # Imported late: only this form needs it, and it takes half a second and 60 MB.
    import pyarrow  # noqa: PLC0415 — see above
    import pyarrow.parquet  # noqa: PLC0415 — see above

    number = 0
    try:
        parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        found = [column for column in columns if column in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=found, use_threads=False):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{shown_name(path)}, row {number}", fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidDataset(
            detail=f"{shown_name(path)} can not be read as Parquet, from row {number + 1} on.",
            hint="Write the file again, or give the rows as JSON Lines.",
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    # Resolved first: a link inside the folder is followed, one that leads out of it is refused. O_NONBLOCK: to open a
    # FIFO would wait for a writer.
    real = path.resolve()
    if real.parent != path.parent.resolve():
        raise _no_file(path)
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _no_file(path) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _no_file(path)
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as content:
                yield cast(BinaryIO, content)
        else:
            yield file


def _no_file(path: Path) -> InvalidDataset:
    return InvalidDataset(
        detail=f"{shown_name(path)} is no regular file inside the data set's folder, or can not be read.",
        hint="Copy the file itself into the folder; links that lead out of it are not followed.",
    )


def _damaged(path: Path) -> InvalidDataset:
    return InvalidDataset(
        detail=f"The compressed data of {shown_name(path)} is damaged or ends too early.", hint="Write the file again."
    )
