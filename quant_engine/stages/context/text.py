"""The text of a run: which data set a request means, and how much of it is read."""

import hashlib
import json
from collections.abc import Sequence

from quant_engine.calibration import ChatRenderer, Document, Purpose, characters_for, dataset_documents
from quant_engine.policy import SELF, Dataset
from quant_engine.stages.context.run import Run


def documents_for(run: Run, dataset: Dataset | None, purpose: Purpose, tokens: int) -> list[Document]:
    """The documents of a request's data set, long enough for ``tokens`` tokens where the data set holds that much."""
    return dataset_documents(
        resolved_dataset(run, dataset),
        purpose,
        run.spec.datasets_dir,
        chat=ChatRenderer(lambda: run.tokenizer),
        max_characters=characters_for(tokens),
        fetched=run.spec.fetched.get(purpose),
    )


def resolved_dataset(run: Run, dataset: Dataset | None) -> Dataset:
    """The request's data set, or the operator's default."""
    return run.spec.default_dataset if dataset is None else dataset


def dataset_inputs(run: Run, dataset: Dataset | None, purpose: Purpose, tokens: int) -> str:
    """The text as an input of a stage: its SHA-256, or ``self``, because the model's fingerprint covers that text."""
    # The content is hashed and not the name: an operator may replace the files of a data set.
    if resolved_dataset(run, dataset) == SELF:
        return SELF
    return documents_digest(documents_for(run, dataset, purpose, tokens))


def documents_digest(documents: Sequence[Document]) -> str:
    """The SHA-256 of one plain text, or of the list of several documents, which no plain text has."""
    # One text keeps the digest of older releases, whose stages can be resumed.
    if len(documents) == 1 and not documents[0].rendered:
        return hashlib.sha256(documents[0].text.encode()).hexdigest()
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.rendered, document.text]).encode() + b"\n")
    return f"documents:{digest.hexdigest()}"
