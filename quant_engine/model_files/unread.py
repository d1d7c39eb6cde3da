"""Compare what a model stores with what its class reads: nothing may be left unread, missing, or of another shape.

A tensor that nobody reads (a bias that the configuration does not announce, a block beyond its number of blocks, a
scale) makes another model of the one that the user has. So it is refused by its name before anything is computed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from quant_engine.errors import InvalidModel
from quant_engine.interface.layout import ModelLayout
from quant_engine.model_files.description import ModelDescription
from quant_engine.model_files.headers import StoredTensor
from quant_engine.model_files.names import end_names, parameter_name, parameter_names

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


@dataclass(frozen=True)
class _Kind:
    """A kind of tensors that a class does not read: how to recognize it, what it is, and what to do."""

    is_one: Callable[[str, ModelLayout], bool]
    what: str
    hint: str


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
    replaced = {parameter_name(part, layout).rpartition(".")[0] for part in parts}
    missing = [name for name in _needed(layout, names) if name not in names and name.rpartition(".")[0] not in replaced]
    known = {names[name] for name in layout.tensors if name in names} | set(parts)
    unread = [name for name in stored if name not in known and not is_harmless(name, stored[name])]
    wrapped = _wrapped(missing, unread, layout)
    if wrapped is not None:
        return [wrapped]
    shapes = [
        (names[name], stored[names[name]].shape, shape)
        for name, shape in layout.tensors.items()
        if name in names and names[name] not in parts and stored[names[name]].shape != shape
    ]
    return [*_misshapen(shapes), *_unread(unread, layout), *_missing(missing, layout)]


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
    for kind in _KINDS:
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


def _is_bias(name: str, layout: ModelLayout) -> bool:
    module, _, leaf = parameter_name(name, layout).rpartition(".")
    return leaf == "bias" and f"{module}.weight" in layout.tensors


def _is_of_a_later_block(name: str, layout: ModelLayout) -> bool:
    found = re.match(rf"(model\.)*{re.escape(layout.architecture.blocks.removeprefix('model.'))}\.(\d{{1,9}})\.", name)
    return found is not None and int(found[2]) >= layout.layers


def _has(*parts: str) -> Callable[[str, ModelLayout], bool]:
    wanted = set(parts)
    return lambda name, _layout: not wanted.isdisjoint(name.lower().split("."))


def _contains(*parts: str) -> Callable[[str, ModelLayout], bool]:
    return lambda name, _layout: any(part in name.lower() for part in parts)


_KINDS: Final = (
    _Kind(
        _contains("lora_", "base_model.", "modules_to_save", "adapter", "prompt_embedd"),
        "parts of an adapter",
        "Merge the adapter into the model (merge_and_unload), save it, and submit the result.",
    ),
    _Kind(
        _contains("vision", "visual", "image", "audio", "multi_modal", "multimodal", "mm_projector"),
        "parts of a multimodal model",
        "Save the text part alone as a model of its class, and submit that.",
    ),
    _Kind(
        _has("mtp", "nextn", "mtp_block", "eh_proj", "medusa_head", "medusa"),
        "heads that predict several tokens",
        "If the model may lose them, load it with transformers and save it again: save_pretrained leaves them out.",
    ),
    _Kind(
        _is_bias,
        "biases",
        "If they belong to the model, announce them in config.json (attention_bias, mlp_bias), if its class has them; "
        "otherwise remove them.",
    ),
    _Kind(
        _is_of_a_later_block,
        "blocks beyond num_hidden_layers ({layers})",
        "Set num_hidden_layers to the number of blocks that the model has, or remove the blocks.",
    ),
    _Kind(
        _contains("scale", "zero_point", "qweight", "qzeros", "g_idx", "absmax", "quant_", "weight_packed"),
        "scales or codes of quantized weights",
        "Submit the dense model, or restore the quantization_config that belongs to these weights.",
    ),
    _Kind(
        _has("lm_head", "score", "classifier", "qa_outputs", "v_head", "value_head", "embed_out", "output", "head"),
        "parts of another head",
        "Submit a model whose head is the one of its class, or remove what is not used.",
    ),
    _Kind(
        lambda _name, _layout: True,
        "tensors",
        "Check that config.json belongs to these weights. If transformers may ignore them, load the model with "
        "transformers and save it with save_pretrained.",
    ),
)
"""What a name says about an unread tensor; the first kind that fits is told."""
