"""Give a tokenizer library copies of a model's checked files, and nothing else to open.

transformers opens files by itself: those that it finds in the directory, and those that configurations name. A name in
``special_tokens_map.json`` replaces even the tokenizer's own files, and may be any path of this machine.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from quant_engine.model_files import ModelFiles, safe_config
from quant_engine.model_files.companions import COPIED, TOKENIZER_CONFIG, template_names, without_code

_BLOCK: Final = 1 << 20
# Arguments by position, a name, the files of versions, and a vocabulary, which is read from a file if it is text.
_PATHS: Final = ("init_inputs", "name_or_path", "fast_tokenizer_files", "vocab", "merges")


@contextmanager
def tokenizer_copy(files: ModelFiles) -> Iterator[Path]:
    """Yield a directory with copies of the tokenizer's files and the configuration, for the block.

    Configurations are copied without anything that names a file or code.

    Raises:
        UnsafeCheckpoint: a file may not be opened.
        InvalidModel: a configuration is no JSON object.
    """
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as parent:
        # transformers knows some models by the name of their directory.
        copy = Path(parent) / (files.directory.name or "model")
        copy.mkdir()
        for name in (*COPIED, *template_names(files)):
            if files.has(name):
                (copy / name).parent.mkdir(exist_ok=True)
                with files.open(name) as content, (copy / name).open("wb") as target:
                    shutil.copyfileobj(content, target, _BLOCK)
        for name, clean in _CLEANED.items():
            if files.has(name):
                (copy / name).write_text(json.dumps(clean(files.read_json(name))), encoding="utf-8")
        yield copy


def _without_paths(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in without_code(content).items() if not _is_path(key)}


def _is_path(key: str) -> bool:
    return key in _PATHS or key.endswith(("_file", "_path"))


_CLEANED: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "config.json": safe_config,
    TOKENIZER_CONFIG: _without_paths,
    "special_tokens_map.json": _without_paths,
}
