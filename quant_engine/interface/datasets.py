"""The operator's data sets: the folders below one directory, found by name, and the files that each purpose reads.

``<name>/`` holds ``train*`` and ``valid*`` for calibration and ``test*`` for evaluation: plain text (``.txt``), JSON
Lines (``.jsonl``), both also compressed (``.gz``), or Parquet. A folder in which no file has such a name is for
calibration alone, because nothing says which of its text is held out.
"""

import pydoc_data.topics
import re
from enum import StrEnum
from pathlib import Path
from typing import Final


class Purpose(StrEnum):
    """The use of a text. The texts of the two purposes never share a character."""

    CALIBRATION = "calibration"
    EVALUATION = "evaluation"


PREFIXES: Final = {Purpose.CALIBRATION: ("train", "valid"), Purpose.EVALUATION: ("test",)}
"""How the names of the files of each purpose begin, in the order in which they are read."""

FORMS: Final = (".txt", ".jsonl", ".parquet")
"""The forms of a file in a folder; ``.txt`` and ``.jsonl`` also with ``.gz`` behind."""

CHARACTERS_PER_TOKEN: Final = 32
"""Characters that are read for each requested token. Tokens are far shorter, so the sample is spread over the text."""

MINIMUM_CHARACTERS: Final = 4_000_000
"""Characters that are read at least, so that a small sample is spread over the text too."""

_SUFFIXES: Final = (*FORMS, ".txt.gz", ".jsonl.gz")
# As a request's field accepts them: a folder that no request can name is not listed.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_DATA: Final = ("readme", "license", "licence", "notice", "copying", "requirements")


def characters_for(tokens: int) -> int:
    """Return how many characters to read for ``tokens`` tokens."""
    return max(MINIMUM_CHARACTERS, CHARACTERS_PER_TOKEN * tokens)


def built_in_text(purpose: Purpose) -> str:
    """Return the half of CPython's language reference that is for ``purpose``."""
    topics = pydoc_data.topics.topics
    # Sorted, so that the text does not depend on the order of the dictionary.
    text = "\n\n".join(topics[name] for name in sorted(topics))
    half = len(text) // 2
    return text[:half] if purpose is Purpose.CALIBRATION else text[half:]


def dataset_folders(datasets_dir: Path | None, purpose: Purpose) -> list[str]:
    """Return the names of the folders with files for ``purpose``, sorted."""
    if datasets_dir is None or not datasets_dir.is_dir():
        return []
    named = (path for path in datasets_dir.iterdir() if _NAME.fullmatch(path.name))
    return sorted(path.name for path in named if dataset_files(path, purpose))


def dataset_folder(datasets_dir: Path | None, name: str) -> Path | None:
    """Return the folder of this name, or None where there is none."""
    # A name with a separator could leave the directory.
    if datasets_dir is None or _NAME.fullmatch(name) is None or not (datasets_dir / name).is_dir():
        return None
    return datasets_dir / name


def dataset_files(directory: Path, purpose: Purpose) -> list[Path]:
    """Return the files that ``purpose`` reads, in order; none for what is no directory."""
    # A link to a file elsewhere is no file of the folder, and reading a FIFO would wait for ever.
    found = [path for path in _listed(directory) if path.name.lower().endswith(_SUFFIXES) and _is_inside(path)]
    if not any(path.name.startswith(prefix) for prefixes in PREFIXES.values() for prefix in prefixes for path in found):
        unnamed = [path for path in found if not path.name.lower().startswith(_NOT_DATA)]
        return unnamed if purpose is Purpose.CALIBRATION else []
    return [path for prefix in PREFIXES[purpose] for path in found if path.name.startswith(prefix)]


def first_folder(datasets_dir: Path | None, purpose: Purpose, preferred: str) -> str | None:
    """Return ``preferred`` if it is a folder with files for ``purpose``, else the first such folder by name."""
    folders = dataset_folders(datasets_dir, purpose)
    return preferred if preferred in folders else next(iter(folders), None)


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _is_inside(path: Path) -> bool:
    return path.is_file() and path.resolve().parent == path.parent.resolve()
