"""Every file beside the weights is a regular file of the model, or the model is refused with the file's name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from quant_engine.errors import InvalidModel, UnsafeCheckpoint
from quant_engine.model_files import (
    FileRules,
    ModelDescription,
    ModelFiles,
    check_companions,
    companion_problem,
    describe_directory,
    generation_problem,
)
from quant_engine.model_files.companions import COPIED, copied_names
from tests.unit.quant_engine.model_files.planted import PLANTS, SECRET, plant_link_out


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "LICENSE"),
    *("NOTICE", "USE_POLICY.md", "README.md", "generation_config.json", "preprocessor_config.json"),
)
_SKIPPED = {("folder", name) for name in ("LICENSE", "NOTICE", "USE_POLICY.md")}


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("kind", sorted(PLANTS))
def test_what_is_no_file_of_the_model_is_refused_by_name(kind: str, name: str, model: Path) -> None:
    PLANTS[kind](model / name)
    if (kind, name) in _SKIPPED:
        assert copied_names(ModelFiles(model)) == {}
        return
    problem = companion_problem(ModelFiles(model))
    assert isinstance(problem, UnsafeCheckpoint)
    assert f"The model's {name} " in problem.detail
    assert SECRET.decode() not in str(problem)


@pytest.mark.parametrize("kind", ["LICENSE", "template"])
def test_so_many_legal_texts_or_templates_are_no_models(kind: str, model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    for index in range(101):
        assert companion_problem(ModelFiles(model)) is None, index
        (model / (f"LICENSE.{index}" if kind == "LICENSE" else f"additional_chat_templates/{index}.jinja")).touch()
    problem = companion_problem(ModelFiles(model))
    assert isinstance(problem, UnsafeCheckpoint)
    assert "101 chat templates and legal texts; the limit is 100" in problem.detail


@pytest.mark.parametrize("kind", sorted(PLANTS.keys() - {"folder"}))
def test_the_folder_of_templates_is_a_folder_with_files(kind: str, model: Path) -> None:
    PLANTS[kind](model / "additional_chat_templates")
    assert "additional_chat_templates" in str(companion_problem(ModelFiles(model)))
    (model / "additional_chat_templates").unlink()
    (model / "additional_chat_templates").mkdir()
    PLANTS[kind](model / "additional_chat_templates" / "tools.jinja")
    assert "additional_chat_templates/tools.jinja" in str(companion_problem(ModelFiles(model)))


def test_a_linked_folder_of_templates_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jinja").write_bytes(SECRET)
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    assert "not a folder of the model itself" in str(companion_problem(ModelFiles(model)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", sorted(PLANTS.keys() - {"gigabyte"}))
def test_config_and_weights_are_files_too(kind: str, name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    PLANTS[kind](model / name)
    files = ModelFiles(model)
    with pytest.raises(UnsafeCheckpoint, match=f"The model's {name} "):
        _ = ModelDescription(files, {}).config if name == "config.json" else describe_directory(files)


def test_a_link_inside_the_model_is_fine(model: Path) -> None:
    (model / "blobs").mkdir()
    (model / "blobs" / "abc").write_text("terms")
    (model / "LICENSE").symlink_to("blobs/abc")
    check_companions(ModelFiles(model))
    assert ModelFiles(model).read_bytes("LICENSE") == b"terms"


def test_a_link_into_an_allowed_directory_is_fine(model: Path, tmp_path: Path) -> None:
    plant_link_out(model / "LICENSE")
    assert "QUANTRY_MODEL_LINK_DIRS" in str(companion_problem(ModelFiles(model)))
    check_companions(ModelFiles(model, FileRules(link_dirs=(tmp_path,))))
    assert "leads out" in str(companion_problem(ModelFiles(model, FileRules(link_dirs=(tmp_path / "other",)))))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_can_not_be_read_is_named(model: Path) -> None:
    (model / "generation_config.json").write_text("{}")
    (model / "generation_config.json").chmod(0)
    assert "can not be opened (Permission denied)" in str(companion_problem(ModelFiles(model)))


@pytest.mark.parametrize(
    ("name", "mebibytes", "passes"),
    [
        ("tokenizer.json", 100, True),
        ("tokenizer.json", 129, False),
        ("tokenizer_config.json", 5, False),
        ("README.md", 15, True),
        ("README.md", 17, False),
        ("LICENSE", 5, False),
    ],
)
def test_the_limit_is_that_of_the_kind(name: str, mebibytes: int, passes: bool, model: Path) -> None:
    with (model / name).open("wb") as file:
        file.truncate(mebibytes << 20)
    assert (companion_problem(ModelFiles(model)) is None) is passes


def test_ordinary_files_pass(model: Path) -> None:
    for name in (*COPIED, "LICENSE", "README.md"):
        (model / name).write_text("{}")
    assert companion_problem(ModelFiles(model)) is None
    assert set(copied_names(ModelFiles(model))) == {*COPIED, "LICENSE"}


_DEEP = '{"a":' * 1000 + "1" + "}" * 1000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{not json", "is not JSON"),
        ("[]", "is not a JSON object"),
        (_DEEP, "levels deep"),
        ('{"temperature": "hot"}', "temperature that is not a number"),
        ('{"temperature": true}', "temperature that is not a number"),
        ('{"do_sample": "no"}', "do_sample that is not true or false"),
        ('{"top_k": 1.5}', "top_k that is not a whole number"),
        ('{"eos_token_id": ["x"]}', "eos_token_id that is not a token id"),
        ('{"max_new_tokens": "many"}', "max_new_tokens that is not a whole number"),
    ],
)
def test_broken_generation_settings_are_refused(content: str, reason: str, model: Path) -> None:
    (model / "generation_config.json").write_text(content)
    problem = generation_problem(ModelFiles(model))
    assert isinstance(problem, InvalidModel)
    assert reason in problem.detail
    assert str(companion_problem(ModelFiles(model))) == str(problem)


@pytest.mark.parametrize(
    "content",
    [
        {"eos_token_id": [1, 999_999], "pad_token_id": -1, "bos_token_id": None},
        {"temperature": 1, "top_k": 50, "do_sample": None, "max_new_tokens": -5, "something_new": {"a": [1]}},
    ],
)
def test_other_generation_settings_pass(content: dict[str, Any], model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps(content))
    assert generation_problem(ModelFiles(model)) is None
