"""What differs between model architectures, as data: which linears share an input, and what produces it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from quant_engine.errors import UnsupportedArchitecture


class ProducerKind(StrEnum):
    """Where the inverse of a site's diagonal goes, so that it costs nothing at inference."""

    NORM_WEIGHT = "norm_weight"
    VALUE_ROWS = "value_rows"  # tied: grouped-query heads share the rows of one value head
    LINEAR_ROWS = "linear_rows"


@dataclass(frozen=True)
class SiteTemplate:
    """One site of a decoder block: a tensor, the linears that read it, and the module that produces it.

    Names are relative to the block. ``readers`` is complete: no other module may read the tensor.
    """

    role: str
    readers: tuple[str, ...]
    producer: str
    kind: ProducerKind


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model class: its names and its blocks' sites, in the order in which a forward reaches them."""

    class_name: str
    model_type: str
    sites: tuple[SiteTemplate, ...]
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"

    def block_prefix(self, index: int) -> str:
        """``model.layers.3.`` for block 3."""
        return f"{self.blocks}.{index}."


_LLAMA_SITES: Final = (
    SiteTemplate(
        role="attention_input",
        readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        producer="input_layernorm",
        kind=ProducerKind.NORM_WEIGHT,
    ),
    SiteTemplate(
        role="attention_output",
        readers=("self_attn.o_proj",),
        producer="self_attn.v_proj",
        kind=ProducerKind.VALUE_ROWS,
    ),
    SiteTemplate(
        role="feed_forward_input",
        readers=("mlp.gate_proj", "mlp.up_proj"),
        producer="post_attention_layernorm",
        kind=ProducerKind.NORM_WEIGHT,
    ),
    SiteTemplate(
        role="feed_forward_inner",
        readers=("mlp.down_proj",),
        producer="mlp.up_proj",
        kind=ProducerKind.LINEAR_ROWS,
    ),
)

ARCHITECTURES: Final[tuple[Architecture, ...]] = (
    Architecture(class_name="LlamaForCausalLM", model_type="llama", sites=_LLAMA_SITES),
    Architecture(class_name="MistralForCausalLM", model_type="mistral", sites=_LLAMA_SITES),
    Architecture(class_name="Qwen2ForCausalLM", model_type="qwen2", sites=_LLAMA_SITES),
    Architecture(class_name="Qwen3ForCausalLM", model_type="qwen3", sites=_LLAMA_SITES),
)


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The architecture that a ``config.json`` names, by its ``architectures`` or else by its ``model_type``.

    Raises:
        UnsupportedArchitecture: it is none of ours, or its two names contradict each other.
    """
    model_type = config.get("model_type")
    names = config.get("architectures")
    named = names[0] if isinstance(names, list) and names else None
    for architecture in ARCHITECTURES:
        if architecture.model_type == model_type and named in (None, architecture.class_name):
            return architecture
    raise UnsupportedArchitecture(
        detail=f"The model is a {str(named or model_type)[:80]!r} (model_type {str(model_type)[:80]!r}).",
        hint="Use a model of one of these classes: "
        + ", ".join(architecture.class_name for architecture in ARCHITECTURES)
        + ".",
    )
