"""Find a model by its id under the operator's directory of models."""

from pathlib import Path

from quant_engine.errors import ModelNotFound
from quant_engine.model_files.opening import LINKS_SETTING, FileRules


def local_model(models_dir: Path, model_id: str, rules: FileRules) -> Path:
    """Return the directory ``model_id`` under ``models_dir``, resolved.

    It is inside ``models_dir``, or it is a link into one of the directories that ``rules`` allow.

    Raises:
        ModelNotFound: there is no such directory, or it leads elsewhere.
    """
    root = models_dir.resolve()
    missing = ModelNotFound(
        detail="There is no local model of this id.",
        hint="Put its directory under QUANTRY_MODELS_DIR on the machine of the API and of the workers, or use "
        "model.source 'hub'; GET /v1/capabilities lists the local models.",
    )
    try:
        directory = (root / model_id).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a null byte
        raise missing from error
    # An id that leads outside without a link is no id.
    if directory == root or not directory.is_dir() or ".." in Path(model_id).parts or Path(model_id).is_absolute():
        raise missing
    if any(directory.is_relative_to(each) for each in (root, *(each.resolve() for each in rules.link_dirs))):
        return directory
    raise ModelNotFound(
        detail="The local model of this id is a link that leads out of QUANTRY_MODELS_DIR.",
        hint=f"Move the model there, or have the operator list the directory it is in in {LINKS_SETTING}.",
    )
