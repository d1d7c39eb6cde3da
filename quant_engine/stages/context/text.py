"""The text of a run: which data set a request means, and how much of it is read."""

import hashlib

from quant_engine.calibration import Purpose, characters_for, dataset_text
from quant_engine.calibration.documents import Document
from quant_engine.policy import SELF, InlineTexts
from quant_engine.stages.context.run import Run

Dataset = str | InlineTexts


def documents_for(run: Run, dataset: Dataset | None, purpose: Purpose, tokens: int) -> list[Document]:
    """The documents of a request's data set, long enough for ``tokens`` tokens where the data set holds that much."""
    return [Document(text_for(run, dataset, purpose, tokens))]


def text_for(run: Run, dataset: str | InlineTexts | None, purpose: Purpose, tokens: int) -> str:
    """The text of a request's data set, long enough for ``tokens`` tokens where the data set holds that much."""
    return dataset_text(
        resolved_dataset(run, dataset), purpose, run.spec.datasets_dir, max_characters=characters_for(tokens)
    )


def resolved_dataset(run: Run, dataset: str | InlineTexts | None) -> str | InlineTexts:
    """The request's data set, or the operator's default."""
    return run.spec.default_dataset if dataset is None else dataset


def dataset_inputs(run: Run, dataset: str | InlineTexts | None, purpose: Purpose, tokens: int) -> str:
    """The text as an input of a stage: its SHA-256, or ``self``, because the model's fingerprint covers that text."""
    # The content is hashed and not the name: an operator may replace the files of a data set.
    if resolved_dataset(run, dataset) == SELF:
        return SELF
    return hashlib.sha256(text_for(run, dataset, purpose, tokens).encode()).hexdigest()
