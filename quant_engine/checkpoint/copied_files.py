"""Copy the files besides the weights from the dense model into a checkpoint: tokenizer, templates, legal texts."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quant_engine.checkpoint.generation import Mended, mended_generation, mended_sentences
from quant_engine.model_files import ModelFiles
from quant_engine.model_files.companions import CONFIGURATIONS, copied_names, without_code
from quant_engine.model_files.generation import GENERATION, read_generation

_BLOCK: Final = 1 << 20


def copy_files(source: ModelFiles, target: Path) -> None:
    """Copy the tokenizer, the templates, the legal texts and the like from ``source`` to ``target``.

    Entries that could make a library run foreign code are removed from configurations. ``generation_config.json`` is
    changed as :mod:`quant_engine.checkpoint.generation` says. If that is not enough, the file is left out.

    Raises:
        UnsafeCheckpoint: a file may not be opened.
        InvalidModel: a configuration is not a JSON object, or has a value of a wrong type.
    """
    changed = {each.name: each for each in _changed(source)}
    for name, own in copied_names(source).items():
        (target / name).parent.mkdir(exist_ok=True)
        if name not in changed:
            # Unchanged files keep their bytes, and so their hashes.
            with source.open(own) as content, (target / name).open("wb") as copy:
                shutil.copyfileobj(content, copy, _BLOCK)
        elif (content_left := changed[name].content) is not None:
            _write_json(target / name, content_left)


def changed_files(source: ModelFiles) -> tuple[str, ...]:
    """Return a sentence for every change of a copied file. Errors: see :func:`copy_files`."""
    return tuple(sentence for each in _changed(source) for sentence in each.sentences)


def copied_file_hashes(source: ModelFiles) -> dict[str, str]:
    """Return the SHA-256 of every file of ``source`` that a checkpoint copies. Errors: see :func:`copy_files`."""
    return {name: source.sha256(own) for name, own in copied_names(source).items()}


@dataclass(frozen=True, kw_only=True)
class _Changed:
    """A file that is not copied as it is; ``content`` is None where it is left out."""

    name: str
    content: Mapping[str, Any] | None
    sentences: tuple[str, ...]


def _changed(source: ModelFiles) -> Iterator[_Changed]:
    for name in CONFIGURATIONS:
        if not source.has(name):
            continue
        content = source.read_json(name)
        safe = without_code(content)
        if safe != content:
            removed = " and ".join(sorted(content.keys() - safe.keys()))
            sentence = f"{name}: removed {removed}, which names code to run"
            yield _Changed(name=name, content=safe, sentences=(sentence,))
    found = _generation(source)
    if found is not None and found.changes:
        yield _Changed(name=GENERATION, content=found.content, sentences=mended_sentences(found))


def _generation(source: ModelFiles) -> Mended | None:
    content = read_generation(source)
    if content is None:
        return None
    safe = without_code(content)
    removed = () if safe == content else ("removed what names code to run",)
    mended = mended_generation(safe)
    return Mended(content=mended.content, changes=(*removed, *mended.changes))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
