"""Names of models and datasets are found under the operator's directories and nowhere else."""

from pathlib import Path

import pytest

from jobs.job.local_files import (
    calibration_datasets,
    evaluation_datasets,
    local_model_dir,
    local_models,
    resolve_calibration_dataset,
    resolve_evaluation_dataset,
)
from jobs.kit.errors import DatasetNotFound, ModelNotFound
from jobs.settings import Settings
from tests.unit.quant_engine.model_files.planted import PLANTS


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for model in ("tiny", "org/small"):
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "config.json").write_text("{}")
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "outside")
    for file in ("books/train-0.txt", "books/test.txt", "news/valid.txt", "exams/test-1.txt", "notes/readme.md"):
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file).write_text("words")
    return Settings(data_dir=tmp_path, datasets_dir=tmp_path / "data", default_dataset="books")


def test_local_models_are_listed_and_found(settings: Settings) -> None:
    assert local_models(settings) == ("org/small", "tiny")
    assert local_model_dir(settings, "org/small") == (settings.models_dir / "org" / "small").resolve()


@pytest.mark.parametrize("model_id", ["absent", "empty", "link", "..", ".", "../outside", "org"])
def test_nothing_else_is_a_local_model(settings: Settings, model_id: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        local_model_dir(settings, model_id)
    assert refused.value.errors[0].pointer == "/model/id"
    assert refused.value.hint


def test_a_model_that_is_a_link_needs_the_operators_word(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as refused:
        local_model_dir(settings, "link")
    assert "QUANTRY_MODEL_LINK_DIRS" in str(refused.value.hint)
    allowed = Settings(data_dir=tmp_path, model_link_dirs=str(tmp_path / "outside"))
    assert local_model_dir(allowed, "link") == tmp_path / "outside"
    assert local_models(allowed) == ("link", "org/small", "tiny")
    other = Settings(data_dir=tmp_path, model_link_dirs=str(tmp_path / "data"))
    assert local_models(other) == ("org/small", "tiny")


@pytest.mark.parametrize("model_id", ["..", "../outside", "org/../../outside"])
def test_an_allowed_directory_is_reached_by_a_link_alone(model_id: str, settings: Settings, tmp_path: Path) -> None:
    allowed = settings.model_copy(update={"model_link_dirs": str(tmp_path)})
    with pytest.raises(ModelNotFound) as refused:
        local_model_dir(allowed, model_id)
    assert "QUANTRY_MODEL_LINK_DIRS" not in str(refused.value.hint)


@pytest.mark.parametrize("kind", sorted(PLANTS))
def test_a_model_whose_configuration_is_no_file_is_not_listed(kind: str, settings: Settings) -> None:
    for model in ("model", "org/model"):
        (settings.models_dir / model).mkdir()
        PLANTS[kind](settings.models_dir / model / "config.json")
        # Whoever asks for it gets the engine's reason.
        assert local_model_dir(settings, model) == settings.models_dir / model
    PLANTS["loop"](settings.models_dir / "circle")
    with pytest.raises(ModelNotFound):
        local_model_dir(settings, "circle")
    assert local_models(settings) == ("org/small", "tiny")


def test_the_nearest_model_and_dataset_are_offered(settings: Settings) -> None:
    with pytest.raises(ModelNotFound, match="Did you mean 'org/small'"):
        local_model_dir(settings, "org/smal")
    with pytest.raises(DatasetNotFound, match="Did you mean 'books'"):
        resolve_calibration_dataset(settings, "boks")


def test_a_models_directory_that_is_not_there_has_no_models(tmp_path: Path) -> None:
    assert local_models(Settings(data_dir=tmp_path / "nowhere")) == ()


def test_datasets_are_listed_by_what_they_can_do(settings: Settings) -> None:
    assert calibration_datasets(settings) == ("books", "news", "pydoc", "self")
    assert evaluation_datasets(settings) == ("books", "exams", "pydoc")


def test_null_is_the_operators_default(settings: Settings, tmp_path: Path) -> None:
    assert resolve_calibration_dataset(settings, None) == "books"
    assert resolve_evaluation_dataset(settings, None) == "books"
    own = Settings(data_dir=tmp_path, default_dataset="self")
    assert resolve_calibration_dataset(own, None) == "self"
    assert resolve_evaluation_dataset(own, None) == "pydoc"


def test_an_unknown_name_is_refused_with_the_known_ones(settings: Settings) -> None:
    with pytest.raises(DatasetNotFound, match="books, news, pydoc, self"):
        resolve_calibration_dataset(settings, "exams")
    with pytest.raises(DatasetNotFound, match="books, exams, pydoc"):
        resolve_evaluation_dataset(settings, "self")
