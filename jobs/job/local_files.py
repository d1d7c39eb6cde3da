"""Models and datasets on the operator's disk, found by name. Requests contain names and never paths."""

from pathlib import Path
from typing import Final

from jobs.kit.errors import DatasetNotFound, ModelNotFound
from jobs.settings import Settings
from quant_engine import errors as engine
from quant_engine.interface.datasets import FORMS, Purpose, dataset_folder, dataset_folders, first_folder
from quant_engine.model_files import ADAPTER_CONFIG, FileRules, ModelFiles
from quant_engine.model_files.locating import local_model
from quant_engine.policy import BUILT_IN, HUB_DATASETS, SELF
from quant_engine.policy.nearest import did_you_mean

_POINTERS: Final = {Purpose.CALIBRATION: "/calibration/dataset", Purpose.EVALUATION: "/evaluation/perplexity/dataset"}
_FIRST_DEFAULT: Final = "wikitext2"


def local_models(settings: Settings) -> tuple[str, ...]:
    """Return the ids that ``model.source: local`` accepts, sorted: ``name`` or ``group/name``."""
    root = settings.models_dir
    candidates = [path.parent.relative_to(root).as_posix() for path in sorted(root.glob("*/config.json"))]
    candidates += [path.parent.relative_to(root).as_posix() for path in sorted(root.glob("*/*/config.json"))]
    return tuple(sorted(name for name in candidates if _is_model(settings, name)))


def local_model_dir(settings: Settings, model_id: str) -> Path:
    """Return the directory of a local model, resolved, inside the models directory or one that its links may lead to.

    Raises:
        ModelNotFound: there is no such directory with the configuration of a model or of an adapter, or it is outside.
    """
    rules = FileRules(settings.link_dirs)
    try:
        directory = local_model(settings.models_dir, model_id, rules)
    except engine.ModelNotFound as error:
        # A link has the right name, but leads elsewhere.
        is_link = (settings.models_dir / model_id).is_symlink()
        near = "" if is_link else did_you_mean(model_id, local_models(settings))
        raise ModelNotFound(f"{error.detail}{near}", pointer="/model/id", hint=error.hint) from error
    # Whatever has this name: the engine says why it can not be read, and an adapter is refused as what it is.
    files = ModelFiles(directory, rules)
    if not files.has("config.json") and not files.has(ADAPTER_CONFIG):
        raise ModelNotFound(
            "There is no local model of this id: a directory with a config.json under the operator's models directory."
            f"{did_you_mean(model_id, local_models(settings))}",
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
        others = [each for each in Purpose if name in dataset_names(settings, each)]
        what = f"The dataset of this name is for {others[0]} alone." if others else "There is no dataset of this name."
        raise DatasetNotFound(
            f"{what}{'' if others else did_you_mean(name, known)} Known here for {purpose}: {', '.join(known)}.",
            pointer=_POINTERS[purpose],
            hint='Use a listed name, send {"texts": [...]} or {"messages": [...]}, name a data set of the Hub with '
            '{"hub": "owner/name"}, or have the operator add QUANTRY_DATASETS_DIR/<name>/ with train* or valid* files '
            f"for calibration and test* files for evaluation ({', '.join(FORMS)}).",
        )
    return name


def _is_model(settings: Settings, model_id: str) -> bool:
    rules = FileRules(settings.link_dirs)
    try:
        # Not opened: only a regular file of the model can be its configuration.
        ModelFiles(local_model(settings.models_dir, model_id, rules), rules).path("config.json")
    except engine.EngineError:
        return False
    return True
