"""Models and datasets on the operator's disk, found by name. Requests contain names and never paths."""

from pathlib import Path
from typing import Final

from jobs.kit.errors import DatasetNotFound, ModelNotFound
from jobs.settings import Settings
from quant_engine import errors as engine
from quant_engine.model_files import ADAPTER_CONFIG, FileRules, ModelFiles
from quant_engine.model_files.locating import local_model
from quant_engine.policy import BUILT_IN, SELF
from quant_engine.policy.nearest import did_you_mean

_CALIBRATION_FILES: Final = ("train*.txt", "valid*.txt")
_EVALUATION_FILES: Final = ("test*.txt",)


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


def calibration_datasets(settings: Settings) -> tuple[str, ...]:
    """Return the names that ``calibration.dataset`` accepts, sorted."""
    return tuple(sorted({BUILT_IN, SELF, *_datasets_with(settings, _CALIBRATION_FILES)}))


def evaluation_datasets(settings: Settings) -> tuple[str, ...]:
    """Return the names that ``evaluation.perplexity.dataset`` accepts, sorted."""
    return tuple(sorted({BUILT_IN, *_datasets_with(settings, _EVALUATION_FILES)}))


def resolve_calibration_dataset(settings: Settings, name: str | None) -> str:
    """Return the name itself, or the operator's default for null. Raises: DatasetNotFound."""
    chosen = settings.default_dataset if name is None else name
    return _checked(chosen, calibration_datasets(settings), "/calibration/dataset")


def resolve_evaluation_dataset(settings: Settings, name: str | None) -> str:
    """Return the name itself, or the operator's default for null. Raises: DatasetNotFound."""
    # The texts of SELF are for calibration only.
    default = BUILT_IN if settings.default_dataset == SELF else settings.default_dataset
    chosen = default if name is None else name
    return _checked(chosen, evaluation_datasets(settings), "/evaluation/perplexity/dataset")


def _checked(name: str, known: tuple[str, ...], pointer: str) -> str:
    if name not in known:
        raise DatasetNotFound(
            f"There is no dataset of this name for this use.{did_you_mean(name, known)} "
            f"Known here: {', '.join(known)}.",
            pointer=pointer,
            hint='Use a listed name, send {"texts": [...]}, or have the operator add QUANTRY_DATASETS_DIR/<name>/ with '
            "train*.txt or valid*.txt for calibration and test*.txt for evaluation.",
        )
    return name


def _datasets_with(settings: Settings, patterns: tuple[str, ...]) -> list[str]:
    root = settings.datasets_dir
    if root is None or not root.is_dir():
        return []
    return [path.name for path in root.iterdir() if any(next(path.glob(pattern), None) for pattern in patterns)]


def _is_model(settings: Settings, model_id: str) -> bool:
    rules = FileRules(settings.link_dirs)
    try:
        # Not opened: only a regular file of the model can be its configuration.
        ModelFiles(local_model(settings.models_dir, model_id, rules), rules).path("config.json")
    except engine.EngineError:
        return False
    return True
