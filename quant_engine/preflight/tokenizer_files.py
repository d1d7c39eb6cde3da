"""The files of a tokenizer, without the library that runs it: whether there are any, and whether they can be parsed."""

from collections.abc import Iterator
from typing import Final

from quant_engine.errors import EngineError, ModelNotFound
from quant_engine.model_files import ModelFiles

_VOCABULARIES: Final = (
    *("tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "spiece.model"),
    *("sentencepiece.bpe.model", "vocab.json", "vocab.txt"),
)
"""Files each of which can be a whole tokenizer, or the main part of one."""
_PARSED: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


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
    if name in _PARSED:
        files.read_json(name)
    else:
        files.path(name)
