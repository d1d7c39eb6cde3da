"""A document: one text of a data set, as it is before any tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text of a data set.

    Attributes:
        text: its characters.
        rendered: whether a chat template wrote the text, so that it has its special tokens already.
    """

    text: str
    rendered: bool = False
