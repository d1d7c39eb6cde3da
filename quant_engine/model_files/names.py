"""Find the stored tensor of each parameter of a model class, as transformers finds it.

Checkpoints of a base model lack the prefix ``model.``, and some have it twice. transformers adds or removes it once,
where the result is a parameter of the class. Nothing else is renamed for the supported classes.
"""

from collections.abc import Iterable
from typing import Final

from quant_engine.errors import InvalidModel
from quant_engine.interface.layout import ModelLayout
from quant_engine.model_files.parsing import REPAIR

_PREFIX: Final = "model."


def parameter_name(stored: str, layout: ModelLayout) -> str:
    """Return the name that a stored tensor has in the class; the stored name itself where the class has no such tensor.

    A part of a quantized weight, or a bias that the class lacks, is named as the weight of its module.
    """
    shorter = stored.removeprefix(_PREFIX)
    if shorter != stored and _is_known(shorter, layout):
        return shorter
    longer = _PREFIX + stored
    return longer if _is_known(longer, layout) else stored


def parameter_names(stored: Iterable[str], layout: ModelLayout) -> dict[str, str]:
    """Return the stored name of each tensor by the name that it has in the class.

    Where a tied head is stored without the embedding, the embedding is read from it.

    Raises:
        InvalidModel: two stored tensors are the same parameter.
    """
    found: dict[str, str] = {}
    for name in stored:
        other = found.setdefault(parameter_name(name, layout), name)
        if other != name:
            raise InvalidModel(
                detail=f"The model stores one tensor twice, as {other[:80]} and as {name[:80]}.", hint=REPAIR
            )
    embedding, head = end_names(layout)
    if layout.ties and embedding not in found and head in found:
        found[embedding] = found.pop(head)
    return found


def end_names(layout: ModelLayout) -> tuple[str, str]:
    """Return the names of the embedding's and the head's weights."""
    return f"{layout.architecture.embedding}.weight", f"{layout.architecture.head}.weight"


def _is_known(name: str, layout: ModelLayout) -> bool:
    return name in layout.tensors or f"{name.rpartition('.')[0]}.weight" in layout.tensors
