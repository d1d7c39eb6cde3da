"""Read text by the name of a data set, without network access."""

import pydoc_data.topics
from enum import StrEnum
from pathlib import Path
from typing import Final

from quant_engine.errors import DatasetNotFound
from quant_engine.policy import BUILT_IN, SELF, InlineTexts


class Purpose(StrEnum):
    """The use of a text. The texts of the two purposes never share a character."""

    CALIBRATION = "calibration"
    EVALUATION = "evaluation"


_PATTERNS: Final = {Purpose.CALIBRATION: ("train*.txt", "valid*.txt"), Purpose.EVALUATION: ("test*.txt",)}


def dataset_names(datasets_dir: Path | None) -> list[str]:
    """Return every name that :func:`dataset_text` knows, and ``self``."""
    local = [] if datasets_dir is None or not datasets_dir.is_dir() else datasets_dir.iterdir()
    return [BUILT_IN, SELF, *sorted(path.name for path in local if path.is_dir())]


def dataset_text(
    dataset: str | InlineTexts, purpose: Purpose, datasets_dir: Path | None, *, max_characters: int
) -> str:
    """Return at most ``max_characters`` of a data set, from its beginning.

    The first half of ``pydoc`` is for calibration, the second for evaluation. Any other name is a directory in
    ``datasets_dir`` with ``train*.txt`` and ``valid*.txt`` for calibration and ``test*.txt`` for evaluation.

    Raises:
        DatasetNotFound: there is no such name, or it has no text for this purpose.
    """
    if isinstance(dataset, InlineTexts):
        return "\n\n".join(dataset.texts)[:max_characters]
    if dataset == BUILT_IN:
        topics = pydoc_data.topics.topics
        # Sorted, so that the text does not depend on the order of the dictionary.
        text = "\n\n".join(topics[name] for name in sorted(topics))
        half = len(text) // 2
        return (text[:half] if purpose is Purpose.CALIBRATION else text[half:])[:max_characters]
    directory = None if datasets_dir is None else datasets_dir / dataset
    # A name with a separator could leave the directory.
    if directory is None or Path(dataset).name != dataset or not directory.is_dir():
        raise DatasetNotFound(
            detail=f"There is no data set {dataset!r} here.",
            hint=f"Use one of {', '.join(dataset_names(datasets_dir))}, or send the texts inline.",
        )
    files = [path for pattern in _PATTERNS[purpose] for path in sorted(directory.glob(pattern)) if path.is_file()]
    if not files:
        raise DatasetNotFound(
            detail=f"The data set {dataset!r} has no text for {purpose.value}.",
            hint=f"Its directory has to hold {' or '.join(_PATTERNS[purpose])}.",
        )
    return _read(files, max_characters)


def _read(files: list[Path], max_characters: int) -> str:
    parts: list[str] = []
    left = max_characters
    for path in files:
        if left <= 0:
            break
        with path.open(encoding="utf-8", errors="replace") as file:
            parts.append(file.read(left))
        left -= len(parts[-1])
    return "\n\n".join(parts)
