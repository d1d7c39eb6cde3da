"""What the name of a tensor that a class does not read says about it: the kind of tensor, and what to do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quant_engine.interface.layout import ModelLayout
from quant_engine.model_files.names import parameter_name


@dataclass(frozen=True)
class Kind:
    """A kind of tensors that a class does not read.

    Attributes:
        is_one: whether a stored name is of this kind.
        what: the kind in plural; ``{layers}`` stands for the number of blocks.
        hint: the remedy.
    """

    is_one: Callable[[str, ModelLayout], bool]
    what: str
    hint: str


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


KINDS: Final = (
    Kind(
        _contains("lora_", "base_model.", "modules_to_save", "adapter", "prompt_embedd"),
        "parts of an adapter",
        "Merge the adapter into the model (merge_and_unload), save it, and submit the result.",
    ),
    Kind(
        _contains("vision", "visual", "image", "audio", "multi_modal", "multimodal", "mm_projector"),
        "parts of a multimodal model",
        "Save the text part alone as a model of its class, and submit that.",
    ),
    Kind(
        _has("mtp", "nextn", "mtp_block", "eh_proj", "medusa_head", "medusa"),
        "heads that predict several tokens",
        "If the model may lose them, load it with transformers and save it again: save_pretrained leaves them out.",
    ),
    Kind(
        _is_bias,
        "biases",
        "If they belong to the model, announce them in config.json (attention_bias, mlp_bias), if its class has them; "
        "otherwise remove them.",
    ),
    Kind(
        _is_of_a_later_block,
        "blocks beyond num_hidden_layers ({layers})",
        "Set num_hidden_layers to the number of blocks that the model has, or remove the blocks.",
    ),
    Kind(
        _contains("scale", "zero_point", "qweight", "qzeros", "g_idx", "absmax", "quant_", "weight_packed"),
        "scales or codes of quantized weights",
        "Submit the dense model, or restore the quantization_config that belongs to these weights.",
    ),
    Kind(
        _has("lm_head", "score", "classifier", "qa_outputs", "v_head", "value_head", "embed_out", "output", "head"),
        "parts of another head",
        "Submit a model whose head is the one of its class, or remove what is not used.",
    ),
    Kind(
        lambda _name, _layout: True,
        "tensors",
        "Check that config.json belongs to these weights. If transformers may ignore them, load the model with "
        "transformers and save it with save_pretrained.",
    ),
)
"""What a name says about an unread tensor; the first kind that fits is told."""
