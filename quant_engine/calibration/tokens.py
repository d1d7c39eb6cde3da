"""Turn documents into token ids, begun as the model's tokenizer begins a text."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoTokenizer

from quant_engine.calibration.documents import Document
from quant_engine.calibration.tokenizer_files import tokenizer_copy
from quant_engine.errors import InvalidModel, ModelNotFound
from quant_engine.model_files import DEFAULT_RULES, FileRules, ModelFiles
from quant_engine.windows import Windows

_JOINT: Final = "\n\n"
_PANIC: Final = "PanicException"


@dataclass(frozen=True)
class Beginning:
    """The special tokens that a tokenizer puts in front of a text, as ids and as the tokenizer names them."""

    ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()


NO_BEGINNING: Final = Beginning()


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """The token ids of a document, int64. The first ``lead`` of them are the special tokens that it begins with."""

    ids: Tensor
    lead: int = 0


def load_tokenizer(directory: Path, rules: FileRules = DEFAULT_RULES) -> Any:
    """Load the checkpoint's tokenizer from copies of its checked files; remote code is never run.

    Raises:
        ModelNotFound: there is no usable tokenizer.
        UnsafeCheckpoint, InvalidModel: one of its files may not be opened, or is damaged, or its native code stops.
    """
    try:
        with tokenizer_copy(ModelFiles(directory, rules)) as copy, native_faults():
            return AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelNotFound(
            detail=f"The model directory {directory.name!r} has no usable tokenizer ({type(error).__name__}).",
            hint="It has to hold tokenizer.json and tokenizer_config.json, as save_pretrained writes them.",
        ) from error


@contextmanager
def native_faults() -> Iterator[None]:
    """Raise :class:`InvalidModel` where the native code of ``tokenizers`` fails inside the block.

    It reports a damaged file as a bare ``Exception``. A panic in it is no ``Exception`` at all, and its class can not
    be imported, so it is known by its name.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != _PANIC and not isinstance(error, RecursionError):
            raise
        raise InvalidModel(
            detail="The library that reads the model's tokenizer (tokenizers) fails on its files.",
            hint="Save the tokenizer again with save_pretrained, or download the model again, and retry.",
        ) from error


def special_beginning(tokenizer: Any) -> Beginning:
    """Return the special tokens that the tokenizer puts in front of a text by default.

    They are what comes before the tokens of a short text. Tokens that it puts behind a text, such as T5's ``</s>``, are
    left out, because a window does not end where its text ends.
    """
    with native_faults():
        plain, whole = (list(tokenizer("x", add_special_tokens=special)["input_ids"]) for special in (False, True))
        lead = next((at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain), 0)
        return Beginning(tuple(whole[:lead]), tuple(tokenizer.convert_ids_to_tokens(whole[:lead])))


def tokenized(
    tokenizer: Any, documents: Sequence[Document], beginning: Beginning, *, joined: bool = True
) -> list[TokenizedDocument]:
    """Tokenize documents. Each begins with ``beginning``, except those that a chat template wrote.

    A rendered document holds its special tokens already. It counts as begun by them if the template wrote them.

    Where there is no beginning, nothing would show where a document ends. There, texts are joined with an empty line
    between them, unless ``joined`` is false because each is a window of its own.
    """
    if joined and not beginning.ids:
        documents = list(_joined(documents))
    # A data set may be without text, and transformers fails on an empty list.
    if not documents:
        return []
    with native_faults():
        # verbose=False: a text may be longer than a model's context, and the warning about it does not apply here.
        encoded = tokenizer([each.text for each in documents], add_special_tokens=False, verbose=False)["input_ids"]
    lead = list(beginning.ids)
    found = []
    for document, ids in zip(documents, encoded, strict=True):
        begun = ids if document.rendered else lead + ids
        count = len(lead) if begun[: len(lead)] == lead else 0
        # A document without a token of its own predicts nothing.
        if len(begun) > count:
            found.append(TokenizedDocument(torch.tensor(begun, dtype=torch.int64), count))
    return found


def check_ids(tokenizer: Any, batches: Iterable[Windows], rows: int) -> None:
    """Check that the embedding has a row for every token.

    Raises:
        InvalidModel: a token has an id of ``rows`` or more.
    """
    for windows in batches:
        index = int(windows.ids_ST.max())
        if index >= rows:
            raise InvalidModel(
                detail=f"The tokenizer gives {tokenizer.convert_ids_to_tokens(index)!r} the id {index}; "
                f"the model's embedding has {rows} rows.",
                hint="Use the tokenizer that belongs to the model, or resize its embedding (resize_token_embeddings) "
                "and save it again.",
            )


def _joined(documents: Sequence[Document]) -> Iterator[Document]:
    for rendered, group in groupby(documents, key=lambda each: each.rendered):
        if rendered:
            yield from group
        else:
            yield Document(_JOINT.join(each.text for each in group))
