"""Compare what a model stores with what its class reads: nothing may be left unread, missing, or of another shape.

A tensor that nobody reads (a bias that the configuration does not announce, a block beyond its number of blocks, a
scale) makes another model of the one that the user has. So it is refused by its name before anything is computed.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from quant_engine.errors import InvalidModel
from quant_engine.interface.layout import ModelLayout
from quant_engine.model_files.description import ModelDescription
from quant_engine.model_files.headers import FLOATING, StoredTensor
from quant_engine.model_files.names import end_names, parameter_name, parameter_names
from quant_engine.model_files.unread_kinds import KINDS

_SHOWN: Final = 3
_ORIGINAL: Final = "Check config.json and the weights against the model's original."
_WRAPPERS: Final = (
    "language_model.model.",
    "model.language_model.",
    "language_model.",
    "transformer.",
    "module.",
    "_orig_mod.",
)


def check_tensors(description: ModelDescription, layout: ModelLayout, read: frozenset[str] | None = None) -> None:
    """Refuse a model whose stored tensors are not those that its class reads. Arguments: see :func:`unread_problems`.

    Raises:
        InvalidModel: the first problem.
    """
    for problem in unread_problems(description, layout, read):
        raise problem


def unread_problems(
    description: ModelDescription, layout: ModelLayout, read: frozenset[str] | None = None
) -> list[InvalidModel]:
    """Return every difference between the stored tensors and the parameters of the class, as errors with a remedy.

    Args:
        read: of quantized weights: the stored tensors that are read as parts of linears, codes and scales. They count
            as read, and stand for the weights of their modules.
    """
    stored, parts = description.tensors, read or frozenset()
    try:
        names = parameter_names(stored, layout)
    except InvalidModel as error:
        return [error]
    # Codes under other names stand for a weight; a bias beside them is stored as itself.
    replaced = {f"{parameter_name(part, layout).rpartition('.')[0]}.weight" for part in parts}
    missing = [name for name in _needed(layout, names) if name not in names and name not in replaced]
    known = {names[name] for name in layout.tensors if name in names} | set(parts)
    unread = [name for name in stored if name not in known and not is_harmless(name, stored[name])]
    wrapped = _wrapped(missing, unread, layout)
    if wrapped is not None:
        return [wrapped]
    shapes = [
        (names[name], stored[names[name]].shape, shape)
        for name, shape in layout.tensors.items()
        if name in names and stored[names[name]].shape != shape
    ]
    codes = [
        f"{names[name]} ({stored[names[name]].dtype})"
        for name in layout.tensors
        if name in names and names[name] not in parts and stored[names[name]].dtype not in FLOATING
    ]
    return [*_coded(codes), *_misshapen(shapes), *_unread(unread, layout), *_missing(missing, layout)]


def is_harmless(name: str, tensor: StoredTensor) -> bool:
    """Return whether a stored tensor is a buffer that old releases wrote and every class computes by itself."""
    if 0 in tensor.shape:
        return True  # without a value
    leaf, integer = name.rpartition(".")[2], tensor.dtype.startswith(("I", "U", "BOOL"))
    return (
        (leaf in ("inv_freq", "original_inv_freq") and len(tensor.shape) == 1)
        or (leaf in ("cos_cached", "sin_cached") and ".rotary_emb." in name)
        or (leaf == "position_ids" and integer)
        or (leaf == "masked_bias" and tensor.shape in ((), (1,)))
        # A causal mask. A bias of a linear has one axis.
        or (leaf == "bias" and len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1))
    )


def _needed(layout: ModelLayout, names: Mapping[str, str]) -> list[str]:
    """Return the parameters that have to be stored: all of them, but one of a tied embedding and its head."""
    _, head = end_names(layout)
    return [name for name in layout.tensors if not (layout.ties and name == head and head not in names)]


def _coded(shown: Sequence[str]) -> list[InvalidModel]:
    if not shown:
        return []
    return [
        InvalidModel(
            detail=f"The model stores codes where its class has weights: {_some(shown)}. Without their scales they are "
            "no weights.",
            hint="Submit the dense model, or the quantized one as a program wrote it, with its quantization_config.",
        )
    ]


def _misshapen(shapes: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> list[InvalidModel]:
    if not shapes:
        return []
    shown = [f"{name} is {list(found)} and has to be {list(wanted)}" for name, found, wanted in shapes]
    return [
        InvalidModel(
            detail=f"config.json does not fit the weights: {_some(shown, '; ')}.",
            hint=_ORIGINAL,
        )
    ]


def _missing(names: Sequence[str], layout: ModelLayout) -> list[InvalidModel]:
    if not names:
        return []
    _, head = end_names(layout)
    hint = _ORIGINAL
    if list(names) == [head]:
        hint = "If the head is the embedding, set tie_word_embeddings to true in config.json."
    return [
        InvalidModel(
            detail=f"The model lacks tensors that a {layout.architecture.class_name} of its config.json needs: "
            f"{_some(names)}.",
            hint=hint,
        )
    ]


def _unread(names: Sequence[str], layout: ModelLayout) -> list[InvalidModel]:
    """Return one problem for each kind of unread tensors, the known kinds first."""
    left, problems = list(names), []
    for kind in KINDS:
        found = [name for name in left if kind.is_one(name, layout)]
        left = [name for name in left if not kind.is_one(name, layout)]
        if found:
            what = kind.what.format(layers=layout.layers)
            problems.append(
                InvalidModel(
                    detail=f"The model stores {what} that a {layout.architecture.class_name} of its config.json "
                    f"does not read: {_some(found)}. Without them it would be another model.",
                    hint=kind.hint,
                )
            )
    return problems


def _wrapped(missing: Sequence[str], unread: Sequence[str], layout: ModelLayout) -> InvalidModel | None:
    """Return the problem of a model all of whose names have a prefix that the class does not know."""
    for prefix in _WRAPPERS:
        found = {name.removeprefix(prefix) for name in unread if name.startswith(prefix)}
        if missing and any(parameter_name(name, layout) in missing for name in found):
            return InvalidModel(
                detail=f"The tensors' names begin with {prefix}, where a {layout.architecture.class_name} and "
                "transformers do not look for them.",
                hint="If this is the text part of a multimodal model, load that model with its own class, and save its "
                f"text part as a {layout.architecture.class_name}; otherwise save the model with save_pretrained.",
            )
    return None


def _some(names: Sequence[str], separator: str = ", ") -> str:
    """The first few names, cut because they come from a file, and how many there are besides."""
    more = len(names) - _SHOWN
    shown = separator.join(name[:160] for name in names[:_SHOWN])
    return shown + (f" and {more:,} more" if more > 0 else "")
