"""The files of a tokenizer, without the library that runs it: whether there are any, and whether they can be parsed."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from quant_engine.errors import EngineError, ModelNotFound
from quant_engine.model_files import ModelFiles, json_nesting
from quant_engine.model_files.json_nesting import Found
from quant_engine.model_files.parsing import MAX_DEPTH, json_problem
from quant_engine.preflight.programs import run_program

_VOCABULARIES: Final = (
    *("tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "spiece.model"),
    *("sentencepiece.bpe.model", "vocab.json", "vocab.txt"),
)
"""Files each of which can be a whole tokenizer, or the main part of one."""
_PARSED: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LARGE_BYTES: Final = 2**20
"""Larger files are parsed by a process of their own: they would stop all threads of this one for seconds."""
_MOST_BYTES: Final = 10 * 2**20
"""Still larger ones take more than a second to parse: the stage ``load`` does so."""
_PARSER: Final = Path(json_nesting.__file__)


def tokenizer_problems(files: ModelFiles, *, is_needed: bool = True) -> Iterator[EngineError]:
    """Yield what is wrong with the tokenizer's files: none at all, or one that can not be opened or is not JSON.

    Args:
        is_needed: whether the job reads a text. What the model writes itself needs no tokenizer.
    """
    names = files.names()
    if is_needed and names.isdisjoint(_VOCABULARIES):
        yield ModelNotFound(
            detail=f"The model directory {files.directory.name!r} has no tokenizer.",
            hint="It has to hold tokenizer.json and tokenizer_config.json, as save_pretrained writes them.",
        )
    for name in (*_VOCABULARIES, *_PARSED[1:]):
        if name in names:
            try:
                _parse(files, name)
            except EngineError as error:
                yield error


def _parse(files: ModelFiles, name: str) -> None:
    path = files.path(name)
    if name not in _PARSED:
        return
    status = path.stat()
    if status.st_size <= _LARGE_BYTES:
        files.read_json(name)
        return
    if status.st_size > _MOST_BYTES:
        return
    try:
        found = _found_in(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except _NotFoundOut:
        return
    problem = json_problem(name, found)
    if problem is not None:
        raise problem


class _NotFoundOut(Exception):
    """The program did not end in time, or had not enough memory; the library that reads the file decides later."""


# Errors are not kept.
@lru_cache(maxsize=256)
def _found_in(path: Path, _identity: tuple[int, ...]) -> Found:
    """Return what a file is; the same file is parsed once."""
    done = run_program(_PARSER, str(path), str(MAX_DEPTH))
    if done is None or done.returncode not in tuple(Found):
        raise _NotFoundOut
    return Found(done.returncode)
