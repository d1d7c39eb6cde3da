"""Models and datasets on the operator's disk, found by name. Requests contain names and never paths."""

from pathlib import Path
from typing import Final

from jobs.kit.errors import DatasetNotFound, ModelNotFound
from jobs.settings import Settings
from quant_engine.interface.datasets import FORMS, Purpose, dataset_folder, dataset_folders, first_folder
from quant_engine.policy import BUILT_IN, HUB_DATASETS, SELF
from quant_engine.policy.nearest import nearest

_POINTERS: Final = {Purpose.CALIBRATION: "/calibration/dataset", Purpose.EVALUATION: "/evaluation/perplexity/dataset"}
_FIRST_DEFAULT: Final = "wikitext2"


def local_models(settings: Settings) -> tuple[str, ...]:
    """Return the ids that ``model.source: local`` accepts, sorted: ``name`` or ``group/name``."""
    root = settings.models_dir
    candidates = [path.parent.relative_to(root).as_posix() for path in sorted(root.glob("*/config.json"))]
    candidates += [path.parent.relative_to(root).as_posix() for path in sorted(root.glob("*/*/config.json"))]
    return tuple(sorted(name for name in candidates if _model_dir(root, name) is not None))


def local_model_dir(settings: Settings, model_id: str) -> Path:
    """Return the directory of a local model, resolved, inside the models directory.

    Raises:
        ModelNotFound: there is no such directory with a ``config.json``, or it is outside.
    """
    directory = _model_dir(settings.models_dir, model_id)
    if directory is None:
        raise ModelNotFound(
            "There is no local model of this id: a directory with a config.json under the operator's models directory.",
            pointer="/model/id",
            hint="GET /v1/capabilities lists the local models; put new ones under QUANTRY_MODELS_DIR/<id>/.",
        )
    return directory


def dataset_names(settings: Settings, purpose: Purpose) -> tuple[str, ...]:
    """Return the names that a request accepts for ``purpose``, sorted."""
    # The texts of SELF are for calibration only.
    always = {BUILT_IN, SELF} if purpose is Purpose.CALIBRATION else {BUILT_IN}
    folders = dataset_folders(settings.datasets_dir, purpose)
    return tuple(sorted({*always, *folders, *hub_dataset_names(settings)}))


def hub_dataset_names(settings: Settings) -> tuple[str, ...]:
    """Return the names that are fetched from the Hub, because the operator has no folder of that name."""
    return tuple(sorted(name for name in HUB_DATASETS if dataset_folder(settings.datasets_dir, name) is None))


def default_dataset(settings: Settings, purpose: Purpose) -> str:
    """Return the data set of a request that names none.

    That is the operator's default, if it has text for ``purpose``. Otherwise it is a folder of the operator's that has:
    ``wikitext2``, or the first by name. Without any it is ``pydoc``.

    Raises:
        DatasetNotFound: the operator's default is not known here at all.
    """
    chosen = settings.default_dataset
    if chosen is not None:
        if chosen in dataset_names(settings, purpose):
            return chosen
        if not any(chosen in dataset_names(settings, each) for each in Purpose):
            raise DatasetNotFound(
                "The request names no dataset, and the operator's default dataset is not there.",
                pointer=_POINTERS[purpose],
                hint="Name a dataset that GET /v1/capabilities lists, or have the operator correct "
                "QUANTRY_DEFAULT_DATASET.",
            )
    return first_folder(settings.datasets_dir, purpose, _FIRST_DEFAULT) or BUILT_IN


def resolve_dataset(settings: Settings, name: str | None, purpose: Purpose) -> str:
    """Return the name itself, or the default for null.

    Raises:
        DatasetNotFound: the name is not known here, or not for ``purpose``.
    """
    if name is None:
        return default_dataset(settings, purpose)
    known = dataset_names(settings, purpose)
    if name not in known:
        near = nearest(name, known)
        suggestion = "" if near is None else f"Did you mean '{near}'? "
        raise DatasetNotFound(
            f"There is no dataset of this name for this use. {suggestion}Known here: {', '.join(known)}.",
            pointer=_POINTERS[purpose],
            hint='Use a listed name, send {"texts": [...]} or {"messages": [...]}, name a data set of the Hub with '
            '{"hub": "owner/name"}, or have the operator add QUANTRY_DATASETS_DIR/<name>/ with train* or valid* files '
            f"for calibration and test* files for evaluation ({', '.join(FORMS)}).",
        )
    return name


def _model_dir(models_dir: Path, model_id: str) -> Path | None:
    # Both paths are resolved first: neither ".." nor a link may lead outside.
    root = models_dir.resolve()
    directory = (root / model_id).resolve()
    if directory == root or not directory.is_relative_to(root) or not (directory / "config.json").is_file():
        return None
    return directory
