"""The directory of a local or a downloaded model, checked to be where models may be."""

from pathlib import Path

from jobs.settings import Settings
from quant_engine.errors import ModelNotFound
from quant_engine.model_files import FileRules
from quant_engine.model_files.locating import local_model


def resolve_local(settings: Settings, model_id: str) -> Path:
    """Return the directory of a local model. Raises: ModelNotFound: see :func:`local_model`."""
    return local_model(settings.models_dir, model_id, FileRules(settings.link_dirs))


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
