"""The files beside a model's weights that are read or copied: tokenizer, templates, card, legal texts.

A checkpoint takes over all of them except the card, of which it reads the license alone.
"""

import re
import stat
from typing import Any, Final

from quant_engine.errors import EngineError, UnsafeCheckpoint
from quant_engine.model_files.generation import GENERATION, read_generation
from quant_engine.model_files.opening import ModelFiles

CARD: Final = "README.md"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
COPIED: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
CONFIGURATIONS: Final = (
    TOKENIZER_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
"""These may name code that a library would run; such entries are left out."""
TEMPLATES: Final = "additional_chat_templates"

_LEGAL: Final = re.compile(r"(licen[sc]e|copying|notice|use_policy)(?![a-z])", re.IGNORECASE)
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_FURTHER: Final = 100
_CODE: Final = ("auto_map", "trust_remote_code")


def copied_names(files: ModelFiles) -> dict[str, str]:
    """Return the model's files that a checkpoint takes over: the name in the model, by the name in the checkpoint.

    Raises:
        UnsafeCheckpoint: there are more than any real model has, or see :func:`template_names`.
    """
    fixed = {name: name for name in (*COPIED, *CONFIGURATIONS, GENERATION) if files.has(name)}
    further = {_safe(name): name for name in template_names(files)} | legal_names(files)
    if len(further) > _MOST_FURTHER:
        raise UnsafeCheckpoint(
            detail=f"The model has {len(further):,} chat templates and legal texts; the limit is {_MOST_FURTHER}.",
            hint="Remove those that do not belong to the model, and submit the job again.",
        )
    return fixed | further


def template_names(files: ModelFiles) -> tuple[str, ...]:
    """Return ``folder/name`` of every further chat template.

    Raises:
        UnsafeCheckpoint: the folder is none, or a link.
    """
    return tuple(files.folder(TEMPLATES, ".jinja"))


def legal_names(files: ModelFiles) -> dict[str, str]:
    """Return ``LICENSE*``, ``NOTICE*``, ``USE_POLICY*`` and similar files, as :func:`copied_names` does."""
    return {_safe(name): name for name in sorted(files.names()) if _LEGAL.match(name) and not _is_folder(files, name)}


def without_code(content: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that could make a library run foreign code."""
    return {key: value for key, value in content.items() if key not in _CODE}


def check_companions(files: ModelFiles) -> None:
    """Check every file that will be read or copied, without reading more than its configurations.

    Raises:
        UnsafeCheckpoint: one is no regular file, leads out of the model, or is larger than its kind may be.
        InvalidModel: a configuration can not be used.
    """
    for name in (*copied_names(files).values(), CARD):
        if files.has(name):
            files.path(name)
    for name in CONFIGURATIONS:
        if files.has(name):
            files.read_json(name)
    read_generation(files)


def companion_problem(files: ModelFiles) -> EngineError | None:
    """Return what :func:`check_companions` raises; None where every file can be used."""
    try:
        check_companions(files)
    except EngineError as error:
        return error
    return None


def _safe(name: str) -> str:
    # These names come from the model and are written to disk and into the card.
    return "/".join(_ODD.sub("-", part) for part in name.split("/"))


def _is_folder(files: ModelFiles, name: str) -> bool:
    # A folder of this name is no text to copy. A link to one is: reading it is refused.
    try:
        return stat.S_ISDIR((files.directory / name).lstat().st_mode)
    except OSError:
        return False
