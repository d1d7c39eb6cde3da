"""Find the license of a base model, in its card or its license file. Every checkpoint made of it has this license."""

import re
from dataclasses import dataclass
from typing import Final

from quant_engine.model_files import ModelFiles
from quant_engine.model_files.companions import CARD, legal_names

OTHER: Final = "other"
"""The Hub's identifier for a license that is not in its list; it then needs a name and a link."""

_MAX_TEXT: Final = 2**20
_FRONT_MATTER: Final = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# Only plain scalars are read, by an expression, so that no YAML parser reads a hostile card.
_FIELD: Final = re.compile(
    r"""^(license|license_name|license_link):[ \t]*(["']?)([^"'#\n\r]{1,300}?)\2[ \t]*\r?$""", re.M
)
_ID: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LINK: Final = re.compile(r"https://[A-Za-z0-9._~:/?#@!$&*+,;=%-]{1,280}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,95}")
_FILE: Final = re.compile(r"licen[sc]e|copying", re.IGNORECASE)

# The first of these phrases that the head of a license contains identifies it. The order matters, because one phrase
# can be part of another license's text. A space stands for any white space.
_PHRASES: Final = (
    ("apache-2.0", "apache license version 2.0"),
    ("mit", "permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("llama3.3", "llama 3.3 community license"),
    ("llama3.2", "llama 3.2 community license"),
    ("llama3.1", "llama 3.1 community license"),
    ("llama3", "llama 3 community license"),
    ("llama2", "llama 2 community license"),
    ("gemma", "gemma terms of use"),
    ("cc-by-nc-4.0", "attribution-noncommercial 4.0 international"),
    ("cc-by-sa-4.0", "attribution-sharealike 4.0 international"),
    ("cc-by-4.0", "attribution 4.0 international"),
    ("agpl-3.0", "gnu affero general public license version 3"),
    ("gpl-3.0", "gnu general public license version 3"),
)
_HEAD: Final = 1500


@dataclass(frozen=True, kw_only=True)
class License:
    """A license in the form of the Hub's front matter.

    Attributes:
        id: the Hub's identifier.
        name, link: for ``other``; the link is an address or a file of the checkpoint.
    """

    id: str
    name: str | None = None
    link: str | None = None


def source_license(source: ModelFiles) -> License | None:
    """Return the license that a model's files state: its card, else its license file; None without either.

    A license file that is not recognized gives ``other``, with a link to the file.

    Raises:
        UnsafeCheckpoint: one of these files may not be opened.
    """
    files = {name: own for name, own in legal_names(source).items() if _FILE.match(name)}
    file = min(files, default=None)
    stated = _front_matter(source)
    identifier = stated.get("license", "").lower()
    # The card is another author's text, so only values of a strict form are used.
    if _ID.fullmatch(identifier) and identifier != "unknown":
        if identifier != OTHER:
            return License(id=identifier)
        name, link = stated.get("license_name", ""), stated.get("license_link", "")
        return License(
            id=OTHER,
            name=name if _NAME.fullmatch(name) else None,
            link=link if _LINK.fullmatch(link) else file,
        )
    if file is None:
        return None
    recognized = _recognized(_text(source, files[file]))
    return License(id=recognized) if recognized else License(id=OTHER, link=file)


def _front_matter(source: ModelFiles) -> dict[str, str]:
    found = _FRONT_MATTER.match(_text(source, CARD)) if source.has(CARD) else None
    return {} if found is None else {key: value.strip() for key, _, value in _FIELD.findall(found[1])}


def _recognized(text: str) -> str | None:
    head = re.sub(r"[\s,]+", " ", text[: 2 * _HEAD].lower())[:_HEAD]
    return next((license_id for license_id, phrase in _PHRASES if phrase.replace(",", "") in head), None)


def _text(source: ModelFiles, name: str) -> str:
    """Return at most a megabyte of a file as text."""
    with source.open(name) as file:
        return file.read(_MAX_TEXT).decode("utf-8", "replace")
