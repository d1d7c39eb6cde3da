"""A tokenizer is loaded from copies: nothing that a model names can make the library open another file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quant_engine.calibration import load_tokenizer
from quant_engine.calibration.tokenizer_files import tokenizer_copy
from quant_engine.errors import UnsafeCheckpoint
from quant_engine.model_files import ModelFiles
from tests.tiny_models import write_tiny_model
from tests.unit.quant_engine.model_files.planted import PLANTS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def _change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


@pytest.mark.parametrize("kind", sorted(PLANTS))
@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "chat_template.jinja"])
def test_no_file_but_a_regular_one_is_read(kind: str, name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    PLANTS[kind](model / name)
    with pytest.raises(UnsafeCheckpoint, match=f"The model's {name}"):
        load_tokenizer(model)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "added_tokens_file", "vocab", "name_or_path"])
def test_no_path_in_a_configuration_is_opened(file: str, key: str, model: Path, tmp_path: Path) -> None:
    expected = load_tokenizer(model)("class A: pass")["input_ids"]
    # Whoever opened this would wait for good.
    os.mkfifo(tmp_path / "elsewhere")
    _change(model / file, **{key: str(tmp_path / "elsewhere")})
    assert load_tokenizer(model)("class A: pass")["input_ids"] == expected


def test_the_copy_holds_the_same_tokenizer(model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (model / "LICENSE").write_text("terms")
    _change(model / "tokenizer_config.json", init_inputs=["/etc/hostname"], auto_map={"AutoTokenizer": "evil.py"})
    with tokenizer_copy(ModelFiles(model)) as copy:
        assert copy.name == model.name
        assert (copy / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
        assert (copy / "additional_chat_templates" / "tools.jinja").is_file()
        assert not (copy / "LICENSE").exists()
        assert not list(copy.glob("*.safetensors"))
        written = json.loads((copy / "tokenizer_config.json").read_text())
    assert not copy.exists()
    own = json.loads((model / "tokenizer_config.json").read_text())
    assert written == {key: value for key, value in own.items() if key not in ("init_inputs", "auto_map")}
    assert "tools" in load_tokenizer(model).chat_template
