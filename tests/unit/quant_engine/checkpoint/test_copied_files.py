"""What a checkpoint takes over from its source."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from quant_engine.checkpoint.copied_files import changed_files, copied_file_hashes, copy_files
from quant_engine.errors import InvalidModel
from quant_engine.model_files import ModelFiles


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
    copy_files(ModelFiles(source), target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == {*taken, "tokenizer_config.json", "preprocessor_config.json"}
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in found)
    assert set(copied_file_hashes(ModelFiles(source))) == found


def test_an_odd_name_is_made_plain(source: Path, target: Path) -> None:
    (source / "LICENSE (Llama 3).txt").write_text("terms")
    copy_files(ModelFiles(source), target)
    assert [path.name for path in target.iterdir()] == ["LICENSE-Llama-3-.txt"]


def test_what_names_code_to_run_is_left_out(source: Path, target: Path) -> None:
    (source / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": "evil.py"}, "tokenizer_class": "X"})
    )
    copy_files(ModelFiles(source), target)
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"tokenizer_class": "X"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "do_sample": True}),
        ({"do_sample": None, "min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
        ({"do_sample": False, "min_p": 0.1, "top_k": 50, "eos_token_id": 2}, {"do_sample": False, "eos_token_id": 2}),
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
    copy_files(ModelFiles(source), target)
    assert json.loads((target / "generation_config.json").read_text()) == expected
    GenerationConfig.from_pretrained(target).save_pretrained(target / "again")


def test_a_valid_generation_configuration_stays_as_it_is(source: Path, target: Path) -> None:
    written = '{"do_sample": true,  "temperature": 0.6, "_from_model_config": true}'
    (source / "generation_config.json").write_text(written)
    copy_files(ModelFiles(source), target)
    assert (target / "generation_config.json").read_text() == written


def test_a_generation_configuration_beyond_mending_is_left_out(source: Path, target: Path) -> None:
    (source / "generation_config.json").write_text('{"max_new_tokens": -5}')
    copy_files(ModelFiles(source), target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", "{", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(content: str, source: Path, target: Path) -> None:
    (source / "tokenizer_config.json").write_text(content)
    with pytest.raises(InvalidModel, match=r"tokenizer_config\.json is no"):
        copy_files(ModelFiles(source), target)


def test_a_directory_without_such_files_has_none(source: Path) -> None:
    assert copied_file_hashes(ModelFiles(source)) == {}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "generation_config.json",
            {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
            "generation_config.json: removed temperature and top_p, because do_sample is false",
        ),
        (
            "generation_config.json",
            {"temperature": 0.9},
            "generation_config.json: set do_sample to true, because there is temperature and no do_sample",
        ),
        (
            "generation_config.json",
            {"temperature": 0.0, "top_k": 1},
            "generation_config.json: removed temperature and top_k, because a temperature of 0 is greedy",
        ),
        (
            "generation_config.json",
            {"num_return_sequences": 5},
            "generation_config.json: left out, because transformers refuses its settings",
        ),
        (
            "generation_config.json",
            {"early_stopping": True, "length_penalty": 2.0},
            "generation_config.json: removed early_stopping and length_penalty, which only a search with beams reads",
        ),
        (
            "generation_config.json",
            {"pad_token_id": -1},
            "generation_config.json: removed pad_token_id, because no token has a negative id",
        ),
        (
            "generation_config.json",
            {"max_new_tokens": -5},
            "generation_config.json: left out, because transformers refuses its settings",
        ),
        (
            "tokenizer_config.json",
            {"auto_map": {}, "model_max_length": 5},
            "tokenizer_config.json: removed auto_map, which names code to run",
        ),
    ],
)
def test_every_change_has_a_sentence(name: str, content: dict[str, Any], sentence: str, source: Path) -> None:
    assert changed_files(ModelFiles(source)) == ()
    (source / name).write_text(json.dumps(content))
    assert changed_files(ModelFiles(source)) == (sentence,)


def test_greedy_stays_greedy_for_who_loads_the_checkpoint(source: Path, target: Path) -> None:
    written = {"temperature": 0.9, "top_p": 0.6, "typical_p": 0.5, "do_sample": False, "eos_token_id": [2, 3]}
    (source / "generation_config.json").write_text(json.dumps(written))
    copy_files(ModelFiles(source), target)
    loaded = GenerationConfig.from_pretrained(target)
    assert loaded.do_sample is False
    assert (loaded.temperature, loaded.top_p, loaded.typical_p) == (None, None, None)
    assert loaded.eos_token_id == [2, 3]
