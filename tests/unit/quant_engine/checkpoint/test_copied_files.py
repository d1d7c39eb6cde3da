"""What a checkpoint takes over from its source."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from quant_engine.checkpoint.copied_files import copied_file_hashes, copied_files, copy_files
from quant_engine.errors import InvalidModel


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "additional_chat_templates").mkdir(parents=True)
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "target"
    directory.mkdir()
    return directory


def test_every_file_of_the_list_is_copied_and_nothing_else(source: Path, target: Path) -> None:
    taken = (
        *("tokenizer.json", "merges.txt", "chat_template.jinja", "additional_chat_templates/tools.jinja", "LICENSE"),
        *("LICENSE.md", "license-mit.txt", "NOTICE", "USE_POLICY.md", "COPYING"),
    )
    left = ("model.safetensors", "config.json", "README.md", "modeling.py", "licenses_of_data.csv", "pytorch_model.bin")
    for name in (*taken, *left, "additional_chat_templates/run.py"):
        (source / name).write_text(f"content of {name}")
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (source / name).write_text('{"a":  1}')
    (source / "NOTICES").mkdir()
    copy_files(source, target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == {*taken, "tokenizer_config.json", "preprocessor_config.json"}
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in found)
    assert set(copied_file_hashes(source)) == found


def test_an_odd_name_is_made_plain(source: Path, target: Path) -> None:
    (source / "LICENSE (Llama 3).txt").write_text("terms")
    copy_files(source, target)
    assert [path.name for path in target.iterdir()] == ["LICENSE-Llama-3-.txt"]


def test_what_names_code_to_run_is_left_out(source: Path, target: Path) -> None:
    (source / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": "evil.py"}, "tokenizer_class": "X"})
    )
    copy_files(source, target)
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"tokenizer_class": "X"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "do_sample": True}),
        ({"do_sample": False, "min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"length_penalty": 0.8, "eos_token_id": [1, 2]}, {"eos_token_id": [1, 2]}),
        ({"pad_token_id": -1, "bos_token_id": 0}, {"bos_token_id": 0}),
    ],
)
def test_a_generation_configuration_can_be_saved_again(
    content: dict[str, Any], expected: dict[str, Any], source: Path, target: Path
) -> None:
    (source / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Fix these issues"):
        GenerationConfig.from_pretrained(source).save_pretrained(target)
    copy_files(source, target)
    assert json.loads((target / "generation_config.json").read_text()) == expected
    GenerationConfig.from_pretrained(target).save_pretrained(target / "again")


def test_a_valid_generation_configuration_stays_as_it_is(source: Path, target: Path) -> None:
    written = '{"do_sample": true,  "temperature": 0.6, "_from_model_config": true}'
    (source / "generation_config.json").write_text(written)
    copy_files(source, target)
    assert (target / "generation_config.json").read_text() == written


def test_a_generation_configuration_beyond_mending_is_left_out(source: Path, target: Path) -> None:
    (source / "generation_config.json").write_text('{"max_new_tokens": -5}')
    copy_files(source, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", "{", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(content: str, source: Path, target: Path) -> None:
    (source / "tokenizer_config.json").write_text(content)
    with pytest.raises(InvalidModel, match=r"tokenizer_config\.json is no"):
        copy_files(source, target)


def test_a_directory_without_such_files_has_none(source: Path) -> None:
    assert copied_files(source) == {}
