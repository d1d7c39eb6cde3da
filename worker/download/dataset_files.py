"""Choose the files of a data set on the Hub: by the ``configs`` of its card, else by names, as ``datasets`` does.

Everything here comes from a repository of somebody else, so nothing is taken to have the right type.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import quote

from quant_engine.interface.datasets import Purpose

TRAIN: Final = "train"
DEFAULT_SPLITS: Final = {Purpose.CALIBRATION: (TRAIN,), Purpose.EVALUATION: ("test", "validation")}
"""The splits of a request that names none, the first one that there is."""

_FORMS: Final = ((".parquet",), (".jsonl", ".jsonl.gz"), (".json", ".json.gz"), (".txt", ".txt.gz"))
_WORDS: Final = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_EDGE: Final = r"[-._ 0-9]"
_SHOWN: Final = 20
_MAX_FILE_NAME: Final = 240
_NOT_DATA: Final = re.compile(r"(readme|license|notice|requirements|dataset_infos?|.*config)\b.*", re.IGNORECASE)

Splits = Mapping[str, Sequence[str]]
"""The patterns of each split."""


class NoSuchFiles(Exception):
    """The repository has no such configuration, split or files; ``detail`` and ``hint`` are for people."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


@dataclass(frozen=True)
class Wanted:
    """The part of a data set: a request's ``config`` and ``split``, and what they are for where it names none."""

    config: str | None
    split: str | None
    purpose: Purpose


def choose_files(names: Iterable[str], configs: object, wanted: Wanted) -> list[str]:
    """Return the files of the wanted split, in order and all of one form.

    Args:
        names: all files of the repository.
        configs: the ``configs`` of its card.

    Raises:
        NoSuchFiles: there are none; names the configurations or splits that there are.
    """
    data = sorted(name for name in names if _is_usable(name))
    if not data:
        raise _no_files("")
    declared = _declared(configs)
    if not declared:
        return _one_form(_by_names(data, wanted), wanted)
    config = _config_among(declared, configs, wanted.config)
    split = _split_among(declared[config], wanted)
    found = [name for name in data if any(_fits(name, pattern) for pattern in declared[config][split])]
    if not found:
        # The Hub's branch refs/convert/parquet has the configurations of the card as folders, and not its files.
        folder = config if any(name.startswith(f"{config}/") for name in data) else None
        found = _by_names(data, replace(wanted, config=folder))
    return _one_form(found, wanted)


def file_name(path: str) -> str:
    """Return the name here of a file of a repository: its whole path, escaped, so that no two have the same."""
    return quote(path, safe="")


def _declared(configs: object) -> dict[str, Splits]:
    """Return the patterns of each configuration and split of a card."""
    found: dict[str, Splits] = {}
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and config.get("data_files"):
            directory = config.get("data_dir")
            prefix = f"{directory.strip('/')}/" if isinstance(directory, str) and directory.strip("/.") else ""
            splits = {split: [prefix + each for each in paths] for split, paths in _splits(config["data_files"])}
            found[str(config.get("config_name", "default"))] = splits
    return found


def _splits(data_files: object) -> list[tuple[str, list[str]]]:
    if isinstance(data_files, dict):
        return [(str(split), _patterns(paths)) for split, paths in data_files.items()]
    if isinstance(data_files, list) and all(isinstance(each, dict) for each in data_files):
        return [(str(each.get("split", TRAIN)), _patterns(each.get("path"))) for each in data_files]
    return [(TRAIN, _patterns(data_files))]


def _patterns(paths: object) -> list[str]:
    listed = paths if isinstance(paths, list) else [paths]
    return [each.removeprefix("./") for each in listed if isinstance(each, str)]


def _config_among(declared: Mapping[str, Splits], configs: Any, config: str | None) -> str:
    if config is not None:
        if config not in declared:
            raise NoSuchFiles("The data set has no configuration of this name.", f"It has {_listed(declared)}.")
        return config
    marked = [
        str(each.get("config_name")) for each in configs if isinstance(each, dict) and each.get("default") is True
    ]
    preferred = next((name for name in (*marked, "default") if name in declared), None)
    if preferred is None and len(declared) > 1:
        raise NoSuchFiles("The data set has several configurations.", f"Name one as config: {_listed(declared)}.")
    return preferred or next(iter(declared))


def _split_among(splits: Iterable[str], wanted: Wanted) -> str:
    there = list(splits)
    asked = DEFAULT_SPLITS[wanted.purpose] if wanted.split is None else (wanted.split,)
    found = next((split for split in asked if split in there), None)
    if found is None:
        lacks = "of this name" if wanted.split is not None else f"for {wanted.purpose.value} ({' or '.join(asked)})"
        raise NoSuchFiles(f"The data set has no split {lacks}.", f"Name one as split: {_listed(there)}.")
    return found


def _by_names(names: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the files of a split by the words in their paths; without any such word, all files are ``train``."""
    if wanted.config is not None:
        names = [name for name in names if name.startswith(f"{wanted.config}/")]
        if not names:
            raise NoSuchFiles(
                "The data set has no configuration of this name.", "Leave config out, or name one of its folders."
            )
    families = {name: _family(name) for name in names}
    if wanted.split is not None and wanted.split not in _WORDS:
        return [name for name in names if re.search(_word(wanted.split), name)]
    if not any(families.values()):
        families = {name: TRAIN for name in names if not _NOT_DATA.fullmatch(name.rsplit("/", 1)[-1])}
    split = _split_among(dict.fromkeys(family for family in families.values() if family), wanted)
    return [name for name in names if families.get(name) == split]


def _family(name: str) -> str | None:
    """Return the split that the last telling part of a path names, so that no file is of two splits."""
    for part in reversed(name.split("/")):
        for family, words in _WORDS.items():
            if any(re.search(_word(word), part, re.IGNORECASE) for word in words):
                return family
    return None


def _word(word: str) -> str:
    return rf"(?:^|/|{_EDGE}){re.escape(word)}(?:{_EDGE}|/|$)"


def _fits(name: str, pattern: str) -> bool:
    """Return whether a path fits a pattern, in which ``**`` is any number of folders and a star matches no slash."""
    patterns = [part for part in pattern.split("/") if part]
    # The numbers of patterns that the path so far fits: a hostile pattern with many stars costs no more than another.
    fitted = _skipping({0}, patterns)
    for part in name.split("/"):
        begun = [number for number in fitted if number < len(patterns)]
        stays = {number for number in begun if patterns[number] == "**"}
        moves = {number + 1 for number in begun if number not in stays and fnmatchcase(part, patterns[number])}
        fitted = _skipping(stays | moves, patterns)
    return len(patterns) in fitted


def _skipping(fitted: set[int], patterns: Sequence[str]) -> set[int]:
    """Return the numbers with those after a ``**``, which may be no folder at all."""
    found = set(fitted)
    for number, pattern in enumerate(patterns):
        if number in found and pattern == "**":
            found.add(number + 1)
    return found


def _one_form(names: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the files of the best form that there is: repositories hold the same rows in several."""
    for suffixes in _FORMS:
        found = [name for name in names if name.lower().endswith(suffixes)]
        if found:
            return found
    raise _no_files(f" for {wanted.purpose.value}" if wanted.split is None else " of this split")


def _no_files(what: str) -> NoSuchFiles:
    return NoSuchFiles(
        f"The data set has no Parquet, JSON Lines or text files{what}.",
        'Set revision to "refs/convert/parquet", the Hub\'s own conversion, or choose another data set.',
    )


def _is_usable(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or not part for part in parts)
    suffixes = tuple(suffix for form in _FORMS for suffix in form)
    return not hidden and len(file_name(name)) <= _MAX_FILE_NAME and name.lower().endswith(suffixes)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(name[:_MAX_FILE_NAME] for name in names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
