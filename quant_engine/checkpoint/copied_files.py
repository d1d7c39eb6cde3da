"""Copy the files besides the weights from the dense model into a checkpoint: tokenizer, templates, legal texts."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig

from quant_engine.checkpoint.hashes import file_sha256
from quant_engine.errors import InvalidModel

GENERATION: Final = "generation_config.json"
_COPIED: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
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
# These may name code that a library would run; such entries are left out.
_CONFIGURATIONS: Final = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
_OF_BEAMS: Final = ("early_stopping", "length_penalty")
_TEMPLATES: Final = "additional_chat_templates"
_LEGAL: Final = re.compile(r"(licen[sc]e|copying|notice|use_policy)(?![a-z])", re.IGNORECASE)
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_JSON: Final = 16 * 2**20


def copy_files(source: Path, target: Path) -> None:
    """Copy the tokenizer, the templates, the legal texts and the like from ``source`` to ``target``.

    Entries that could make a library run foreign code are removed from configurations. ``generation_config.json`` is
    changed so that transformers can save it again: settings without effect are removed, and where it has settings of
    sampling without ``do_sample``, this becomes true, as other engines read it already. If that is not enough, the file
    is left out.

    Raises:
        InvalidModel: a configuration is not a JSON object.
    """
    for name, path in copied_files(source).items():
        (target / name).parent.mkdir(exist_ok=True)
        if name not in (*_CONFIGURATIONS, GENERATION):
            shutil.copyfile(path, target / name)
            continue
        content = _object(path)
        safe = {key: value for key, value in content.items() if key not in ("auto_map", "trust_remote_code")}
        kept = _mended(safe) if name == GENERATION else safe
        # An unchanged file keeps its bytes, and so its hash.
        if kept == content:
            shutil.copyfile(path, target / name)
        elif kept is not None:
            _write_json(target / name, kept)


def copied_files(source: Path) -> dict[str, Path]:
    """Return the files that a checkpoint copies from ``source``, by their names in the checkpoint."""
    names = [*_COPIED, *_CONFIGURATIONS, GENERATION]
    templates = sorted((source / _TEMPLATES).glob("*.jinja"))
    wanted = {name: source / name for name in names} | {f"{_TEMPLATES}/{_safe(path)}": path for path in templates}
    return {name: path for name, path in (wanted | legal_files(source)).items() if path.is_file()}


def legal_files(source: Path) -> dict[str, Path]:
    """Return ``LICENSE*``, ``NOTICE*``, ``USE_POLICY*`` and similar files by their names in the checkpoint."""
    return {_safe(path): path for path in sorted(source.iterdir()) if _LEGAL.match(path.name) and path.is_file()}


def copied_file_hashes(source: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of ``source`` that a checkpoint copies."""
    return {name: file_sha256(path) for name, path in copied_files(source).items()}


def _safe(path: Path) -> str:
    # These names come from the model and are written to disk and into the card.
    return _ODD.sub("-", path.name)


def _mended(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a generation configuration that transformers can save again, or None if it can not be repaired."""
    # The smallest change first; a configuration that is valid already stays as it is.
    mended = dict(content)
    if not _is_valid(mended):
        mended = {key: value for key, value in mended.items() if not _is_idle(key, value, mended)}
    if not _is_valid(mended):
        mended["do_sample"] = True
    return mended if _is_valid(mended) else None


def _is_idle(key: str, value: Any, content: dict[str, Any]) -> bool:
    """Return whether a setting has no effect: one of beam search without beams, or a token that can not exist."""
    negative = key == "pad_token_id" and isinstance(value, int) and value < 0
    return negative or (key in _OF_BEAMS and content.get("num_beams") in (None, 1))


def _is_valid(content: dict[str, Any]) -> bool:
    try:
        # Strict validation is what save_pretrained requires.
        GenerationConfig.from_dict(dict(content)).validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise _unusable(path.name, "is too large")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unusable(path.name, "is not JSON") from error
    if not isinstance(content, dict):
        raise _unusable(path.name, "is not a JSON object")
    return content


def _unusable(name: str, reason: str) -> InvalidModel:
    return InvalidModel(
        detail=f"The model's {name} {reason}.", hint="Download the model again, or repair the file, and retry."
    )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
