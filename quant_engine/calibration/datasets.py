"""Read a data set as documents, without network access."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from quant_engine.calibration.chat import ChatRenderer
from quant_engine.calibration.data_files import is_text, read_text, rows
from quant_engine.calibration.documents import Document
from quant_engine.calibration.rows import MESSAGES, TEXT, row_document
from quant_engine.errors import DatasetNotFound
from quant_engine.interface.datasets import (
    FORMS,
    PREFIXES,
    Purpose,
    built_in_text,
    dataset_files,
    dataset_folder,
    dataset_folders,
)
from quant_engine.policy import (
    BUILT_IN,
    HUB_DATASETS,
    SELF,
    ChatMessage,
    Dataset,
    HubDataset,
    InlineMessages,
    InlineTexts,
)

_SEPARATOR: Final = "\n\n"

ONE_TEXT: Final = frozenset({"Salesforce/wikitext"})
"""The data sets of the Hub whose rows are the lines of one text. Published perplexities join them by empty lines."""


def dataset_names(datasets_dir: Path | None) -> list[str]:
    """Return every name of a data set that is on this machine, and ``self``."""
    local = {name for purpose in Purpose for name in dataset_folders(datasets_dir, purpose)}
    return [BUILT_IN, SELF, *sorted(local)]


def dataset_documents(
    dataset: Dataset,
    purpose: Purpose,
    datasets_dir: Path | None,
    *,
    chat: ChatRenderer,
    max_characters: int,
    fetched: Path | None = None,
) -> list[Document]:
    """Return the documents of a data set, from its beginning, at most ``max_characters`` together.

    The first half of ``pydoc`` is for calibration, the second for evaluation. Any other name is a folder in
    ``datasets_dir`` (:mod:`quant_engine.interface.datasets`). Its text files are one document, each of its rows is
    another; so is each text or conversation of a request.

    Args:
        fetched: the directory with the files of a data set of the Hub.

    Raises:
        DatasetNotFound: there is no such name, it has no text for this purpose, or it was not fetched from the Hub.
        InvalidDataset: a file or a row can not be read.
        NoChatTemplate: the data set has messages, and the model no chat template.
    """
    if isinstance(dataset, str):
        folder = dataset_folder(datasets_dir, dataset)
        if dataset == BUILT_IN:
            return _limited([Document(built_in_text(purpose))], max_characters)
        if folder is not None:
            return _file_documents(_files_for(purpose, folder, dataset), None, chat, max_characters)
        dataset = _of_the_hub(dataset, datasets_dir)
    match dataset:
        case InlineTexts():
            return _limited(map(Document, dataset.texts), max_characters)
        case InlineMessages():
            return _limited(_conversations(dataset.messages, chat), max_characters)
        case HubDataset():
            return _fetched_documents(dataset, fetched, chat, max_characters)


def _limited(documents: Iterable[Document], max_characters: int) -> list[Document]:
    """Return the documents that are not empty, the last one cut, without reading more than needed."""
    kept: list[Document] = []
    left = max_characters
    for document in documents if left > 0 else ():
        if document.text:
            kept.append(Document(document.text[:left], document.rendered))
            left -= len(kept[-1].text)
        if left <= 0:
            break
    return kept


def _conversations(conversations: Sequence[Sequence[ChatMessage]], chat: ChatRenderer) -> Iterator[Document]:
    for number, messages in enumerate(conversations, start=1):
        rendered = chat.render([message.model_dump() for message in messages], f"Conversation {number}")
        yield Document(rendered, rendered=True)


def _files_for(purpose: Purpose, folder: Path, name: str) -> list[Path]:
    files = dataset_files(folder, purpose)
    if not files:
        begins = " or ".join(f"{prefix}*" for prefix in PREFIXES[purpose])
        raise DatasetNotFound(
            detail=f"The data set {name!r} has no text for {purpose.value}.",
            hint=f"Its folder has to hold files {begins}, as {', '.join(FORMS)}.",
        )
    return files


def _of_the_hub(name: str, datasets_dir: Path | None) -> HubDataset:
    if name not in HUB_DATASETS:
        raise DatasetNotFound(
            detail="There is no data set of this name here.",
            hint=f"Use one of {', '.join(dataset_names(datasets_dir))}, or send the texts inline.",
        )
    return HUB_DATASETS[name]


def _fetched_documents(
    dataset: HubDataset, fetched: Path | None, chat: ChatRenderer, max_characters: int
) -> list[Document]:
    if fetched is None:
        raise DatasetNotFound(
            detail=f"The data set {dataset.hub} of the Hub is not on this machine.",
            hint="The service fetches it for a job. Here, put its files into a folder of your data sets.",
        )
    files = sorted(fetched.iterdir())
    if dataset.hub in ONE_TEXT:
        return _limited([_one_text(_row_documents(files, dataset.column, chat), max_characters)], max_characters)
    return _file_documents(files, dataset.column, chat, max_characters)


def _one_text(lines: Iterable[Document], max_characters: int) -> Document:
    parts, left = [], max_characters
    for line in lines:
        parts.append(line.text)
        left -= len(line.text) + len(_SEPARATOR)
        if left <= 0:
            break
    return Document(_SEPARATOR.join(parts))


def _file_documents(
    files: Sequence[Path], column: str | None, chat: ChatRenderer, max_characters: int
) -> list[Document]:
    texts = [path for path in files if is_text(path)]
    joined = [Document(_joined(texts, max_characters))] if texts else []
    left = max_characters - sum(len(document.text) for document in joined)
    return joined + _limited(_row_documents(files, column, chat), left)


def _row_documents(files: Sequence[Path], column: str | None, chat: ChatRenderer) -> Iterator[Document]:
    columns = (TEXT, MESSAGES) if column is None else (column,)
    for path in files:
        if not is_text(path):
            for row in rows(path, columns):
                yield row_document(row, column, chat)


def _joined(files: Sequence[Path], max_characters: int) -> str:
    parts: list[str] = []
    left = max_characters
    for path in files:
        if left <= 0:
            break
        parts.append(read_text(path, left))
        left -= len(parts[-1])
    return _SEPARATOR.join(parts)
