"""Names of models and datasets are found under the operator's directories and nowhere else."""

from pathlib import Path

import pytest

from jobs.job.local_files import (
    dataset_names,
    default_dataset,
    hub_dataset_names,
    local_model_dir,
    local_models,
    resolve_dataset,
)
from jobs.kit.errors import DatasetNotFound, ModelNotFound
from jobs.settings import Settings
from quant_engine.interface.datasets import Purpose
from tests.unit.quant_engine.model_files.planted import PLANTS

CALIBRATION, EVALUATION = Purpose.CALIBRATION, Purpose.EVALUATION


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
        resolve_dataset(settings, "boks", CALIBRATION)


def test_a_models_directory_that_is_not_there_has_no_models(tmp_path: Path) -> None:
    assert local_models(Settings(data_dir=tmp_path / "nowhere")) == ()


def with_folders(tmp_path: Path, *files: str, default: str | None = None) -> Settings:
    (tmp_path / "sets").mkdir()
    for file in files:
        (tmp_path / "sets" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "sets" / file).write_text("words")
    return Settings(data_dir=tmp_path, datasets_dir=tmp_path / "sets", default_dataset=default)


def test_datasets_are_listed_by_what_they_can_do(settings: Settings) -> None:
    assert dataset_names(settings, CALIBRATION) == ("books", "c4", "news", "pydoc", "self", "wikitext2")
    assert dataset_names(settings, EVALUATION) == ("books", "c4", "exams", "pydoc", "wikitext2")


def test_folders_of_every_form_are_listed_and_what_is_no_folder_of_text_is_not(tmp_path: Path) -> None:
    files = ("a/train.jsonl", "b/valid-0.parquet", "c/data.jsonl.gz", "d/test.parquet", "e/notes.md", "_f/train.txt")
    settings = with_folders(tmp_path, *files, "g/README.txt")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "sets" / "h").mkdir()
    (tmp_path / "sets" / "h" / "train.txt").symlink_to(tmp_path / "outside.txt")
    listed = {"c4", "pydoc", "wikitext2"}
    assert set(dataset_names(settings, CALIBRATION)) - listed == {"self", "a", "b", "c"}
    assert set(dataset_names(settings, EVALUATION)) - listed == {"d"}


def test_a_folder_goes_before_the_hub(tmp_path: Path) -> None:
    settings = with_folders(tmp_path, "wikitext2/valid.txt")
    assert hub_dataset_names(settings) == ("c4",)
    assert "wikitext2" in dataset_names(settings, CALIBRATION)
    assert "wikitext2" not in dataset_names(settings, EVALUATION)


def test_null_is_the_operators_default(settings: Settings, tmp_path: Path) -> None:
    assert resolve_dataset(settings, None, CALIBRATION) == "books"
    assert resolve_dataset(settings, None, EVALUATION) == "books"
    own = Settings(data_dir=tmp_path, default_dataset="self")
    assert resolve_dataset(own, None, CALIBRATION) == "self"
    assert resolve_dataset(own, None, EVALUATION) == "pydoc"


@pytest.mark.parametrize(
    ("files", "default", "expected"),
    [
        ((), None, ("pydoc", "pydoc")),
        (("books/train.txt",), None, ("books", "pydoc")),
        (("books/train.txt", "exams/test.jsonl"), None, ("books", "exams")),
        (("books/train.txt", "books/test.txt", "wikitext2/valid.txt"), None, ("wikitext2", "books")),
        (("b/train.txt", "a/train.jsonl"), None, ("a", "pydoc")),
        (("a/train.txt",), "pydoc", ("pydoc", "pydoc")),
        (("a/train.txt", "b/train.txt", "c/test.txt"), "b", ("b", "c")),
        ((), "wikitext2", ("wikitext2", "wikitext2")),
    ],
)
def test_a_folder_of_the_operators_is_the_default(
    files: tuple[str, ...], default: str | None, expected: tuple[str, str], tmp_path: Path
) -> None:
    settings = with_folders(tmp_path, *files, default=default)
    assert (default_dataset(settings, CALIBRATION), default_dataset(settings, EVALUATION)) == expected


def test_a_default_that_is_not_there_is_told_with_its_variable(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound) as refused:
        default_dataset(with_folders(tmp_path, "a/train.txt", default="absent"), CALIBRATION)
    assert "QUANTRY_DEFAULT_DATASET" in str(refused.value.hint)


def test_an_unknown_name_is_refused_with_the_known_ones(settings: Settings) -> None:
    with pytest.raises(DatasetNotFound, match="books, c4, news, pydoc, self"):
        resolve_dataset(settings, "exams", CALIBRATION)
    with pytest.raises(DatasetNotFound, match="books, c4, exams, pydoc"):
        resolve_dataset(settings, "self", EVALUATION)


def test_a_misspelled_name_is_offered_the_nearest_and_not_repeated(settings: Settings) -> None:
    with pytest.raises(DatasetNotFound, match="Did you mean 'wikitext2'") as refused:
        resolve_dataset(settings, "wikitxt2", CALIBRATION)
    assert "wikitxt2" not in f"{refused.value} {refused.value.hint}"
