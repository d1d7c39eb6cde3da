"""The directory of a local model, checked to be inside the directory of models."""

from pathlib import Path

from quant_engine.errors import ModelNotFound


def resolve_local(models_dir: Path, model_id: str) -> Path:
    """Return the directory ``model_id`` under ``models_dir``.

    Raises:
        ModelNotFound: there is no such directory, or it leads outside ``models_dir``.
    """
    root = models_dir.resolve()
    # Resolved before the check: "..", an absolute id or a symbolic link may lead outside.
    directory = (root / model_id).resolve()
    if directory == root or not directory.is_relative_to(root) or not directory.is_dir():
        raise ModelNotFound(
            detail=f"There is no local model {model_id!r}.",
            hint="Put its directory under QUANTRY_MODELS_DIR on the worker's machine, or use model.source 'hub'.",
        )
    return directory


def require_inside(directory: Path, root: Path) -> Path:
    """Return ``directory`` as an absolute path, if it is inside ``root``.

    Raises:
        ModelNotFound: it does not.
    """
    resolved = directory.resolve()
    if not resolved.is_relative_to(root.resolve()) or not resolved.is_dir():
        raise ModelNotFound(
            detail="The downloaded model is not where it was said to be.",
            hint="Submit the job again; if it happens twice, clear models-cache in the data directory.",
        )
    return resolved
