"""The differences between model architectures, as data: which linears share an input, and what produces it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from quant_engine.errors import UnsupportedArchitecture
from quant_engine.interface.parameters import (
    ATTENTION_BIASES,
    FOUR_NORMS,
    FUSED,
    HEAD_NORMS,
    TWO_NORMS,
    Parameters,
    class_sizes,
    separate_linears,
)


class ProducerKind(StrEnum):
    """The weights into which the inverse of a site's diagonal is fused, so that it costs nothing at inference."""

    NORM_WEIGHT = "norm_weight"
    VALUE_ROWS = "value_rows"  # tied: grouped-query heads share the rows of one value head
    LINEAR_ROWS = "linear_rows"


class ProducerRows(StrEnum):
    """Which rows of the producing linear make the site's tensor."""

    ALL = "all"
    LAST = "last"  # of a fused linear: the values of [q; k; v], the linear branch of [gate; up]


@dataclass(frozen=True)
class SiteTemplate:
    """One site of a decoder block: a tensor, the linears that read it, and the module that produces it.

    Names are relative to the block. ``readers`` is complete: no other module may read the tensor. ``partners`` are the
    linears whose outputs are multiplied with the producer's, channel by channel.
    """

    role: str
    readers: tuple[str, ...]
    producer: str
    kind: ProducerKind
    rows: ProducerRows = ProducerRows.ALL
    partners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model class: its names, its parameters, and the sites of its blocks in the order of a forward.

    Attributes:
        norm_offset: the number that every RMSNorm adds to its stored weight before it multiplies (Gemma: 1).
        post_norms: norms between a linear and the residual stream to which it is added. No rotation of the stream
            passes through them, because no linear follows into which their weight could be folded.
        gguf: the architecture's name in GGUF files, where it is not the model type.
    """

    class_name: str
    model_type: str
    sites: tuple[SiteTemplate, ...]
    parameters: Parameters
    norm_offset: float = 0.0
    post_norms: tuple[str, ...] = ()
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    gguf: str | None = None

    @property
    def gguf_name(self) -> str:
        """The architecture's name in GGUF files."""
        return self.gguf or self.model_type

    def block_prefix(self, index: int) -> str:
        """``model.layers.3.`` for block 3."""
        return f"{self.blocks}.{index}."


def _attention_output(producer: str = "self_attn.v_proj", rows: ProducerRows = ProducerRows.ALL) -> SiteTemplate:
    return SiteTemplate("attention_output", ("self_attn.o_proj",), producer, ProducerKind.VALUE_ROWS, rows)


def _feed_forward_inner(
    producer: str = "mlp.up_proj",
    rows: ProducerRows = ProducerRows.ALL,
    partners: tuple[str, ...] = ("mlp.gate_proj",),
) -> SiteTemplate:
    return SiteTemplate("feed_forward_inner", ("mlp.down_proj",), producer, ProducerKind.LINEAR_ROWS, rows, partners)


def _separate_sites(feed_forward_norm: str) -> tuple[SiteTemplate, ...]:
    """Sites of a block whose q, k, v, gate and up are linears of their own."""
    return (
        SiteTemplate(
            role="attention_input",
            readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            producer="input_layernorm",
            kind=ProducerKind.NORM_WEIGHT,
        ),
        _attention_output(),
        SiteTemplate(
            role="feed_forward_input",
            readers=("mlp.gate_proj", "mlp.up_proj"),
            producer=feed_forward_norm,
            kind=ProducerKind.NORM_WEIGHT,
        ),
        _feed_forward_inner(),
    )


# Gemma's post_attention_layernorm is after the attention; the norm before the feed-forward has another name.
_LLAMA_SITES: Final = _separate_sites("post_attention_layernorm")
_GEMMA_SITES: Final = _separate_sites("pre_feedforward_layernorm")
_GEMMA_POST_NORMS: Final = ("post_attention_layernorm", "post_feedforward_layernorm")
_PHI3_SITES: Final = (
    SiteTemplate("attention_input", ("self_attn.qkv_proj",), "input_layernorm", ProducerKind.NORM_WEIGHT),
    _attention_output("self_attn.qkv_proj", ProducerRows.LAST),
    SiteTemplate("feed_forward_input", ("mlp.gate_up_proj",), "post_attention_layernorm", ProducerKind.NORM_WEIGHT),
    # Its rows are those of both linears, so it has no partner.
    _feed_forward_inner("mlp.gate_up_proj", ProducerRows.LAST, ()),
)


def _gemma(
    class_name: str, model_type: str, gguf: str, vocabulary: int, head_norms: tuple[str, ...] = ()
) -> Architecture:
    sizes = class_sizes(
        vocabulary=vocabulary, hidden=2304, intermediate=9216, layers=26, heads=8, key_value_heads=4, head_dim=256
    )
    parameters = Parameters(ATTENTION_BIASES, FOUR_NORMS, sizes, head_norms, ties=True, heads_divide=True)
    return Architecture(
        class_name,
        model_type,
        _GEMMA_SITES,
        parameters,
        norm_offset=1.0,
        post_norms=_GEMMA_POST_NORMS,
        gguf=gguf,
    )


_LLAMA: Final = Parameters(
    separate_linears(inputs_bias="attention_bias", output_bias="attention_bias", feed_forward_bias="mlp_bias"),
    TWO_NORMS,
    class_sizes(vocabulary=32_000, hidden=4096, intermediate=11_008, layers=32, heads=32),
    heads_divide=True,
)
_MISTRAL: Final = Parameters(
    separate_linears(),
    TWO_NORMS,
    class_sizes(vocabulary=32_000, hidden=4096, intermediate=14_336, layers=32, heads=32, key_value_heads=8),
)
_QWEN2: Final = Parameters(
    separate_linears(inputs_bias=True),
    TWO_NORMS,
    class_sizes(vocabulary=151_936, hidden=4096, intermediate=22_016, layers=32, heads=32, key_value_heads=32),
)
_QWEN3: Final = Parameters(
    ATTENTION_BIASES,
    TWO_NORMS,
    class_sizes(
        vocabulary=151_936, hidden=4096, intermediate=22_016, layers=32, heads=32, key_value_heads=32, head_dim=128
    ),
    HEAD_NORMS,
)
_PHI3: Final = Parameters(
    FUSED, TWO_NORMS, class_sizes(vocabulary=32_064, hidden=3072, intermediate=8192, layers=32, heads=32)
)
ARCHITECTURES: Final[tuple[Architecture, ...]] = (
    Architecture("LlamaForCausalLM", "llama", _LLAMA_SITES, _LLAMA),
    Architecture("MistralForCausalLM", "mistral", _LLAMA_SITES, _MISTRAL, gguf="llama"),
    Architecture("Qwen2ForCausalLM", "qwen2", _LLAMA_SITES, _QWEN2),
    Architecture("Qwen3ForCausalLM", "qwen3", _LLAMA_SITES, _QWEN3),
    _gemma("Gemma2ForCausalLM", "gemma2", "gemma2", 256_000),
    _gemma("Gemma3ForCausalLM", "gemma3_text", "gemma3", 262_208, HEAD_NORMS),
    Architecture("Phi3ForCausalLM", "phi3", _PHI3_SITES, _PHI3),
)
_ORIGINAL: Final = "Check config.json against the model's original."
_TEXT_CONFIGS: Final = ("text_config", "llm_config", "language_config")
"""Fields in which multimodal models have the configuration of their text part."""


def architecture_of(config: dict[str, Any]) -> Architecture:
    """Return the architecture that a ``config.json`` names by ``model_type`` and, if present, ``architectures``.

    Raises:
        UnsupportedArchitecture: the class is not supported, or the two names contradict each other.
    """
    found = find_architecture(config)
    if found is not None:
        return found
    text = _text_architecture(config)
    hint = "Use a model of one of these classes: " + ", ".join(each.class_name for each in ARCHITECTURES) + "."
    base = _base_architecture(config)
    if base is not None:
        hint = (
            f"It is a {base.class_name} without its head. If the head is the embedding, load it with "
            "AutoModelForCausalLM and save it with save_pretrained, and submit the result."
        )
    if text is not None:
        hint = f"It has a text part that is supported: save that part alone as a {text.class_name}, and submit it."
    # The names come from the file and may be of any length.
    model_type, named = str(config.get("model_type"))[:80], str(_named_class(config))[:80]
    if config.get("model_type") is None:
        raise UnsupportedArchitecture(detail="The model's config.json has no model_type.", hint=f"{_ORIGINAL} {hint}")
    if any(each.class_name == named for each in ARCHITECTURES):
        raise UnsupportedArchitecture(
            detail=f"The model's config.json contradicts itself: a {named} has another model_type than {model_type!r}.",
            hint=f"{_ORIGINAL} {hint}",
        )
    raise UnsupportedArchitecture(
        detail=f"The model is a {str(_named_class(config) or model_type)[:80]!r} (model_type {model_type!r}), a class "
        "that is not supported.",
        hint=hint,
    )


def find_architecture(config: dict[str, Any]) -> Architecture | None:
    """Return the architecture as :func:`architecture_of` does, or None where it is not supported."""
    model_type, named = config.get("model_type"), _named_class(config)
    for architecture in ARCHITECTURES:
        if architecture.model_type == model_type and named in (None, architecture.class_name):
            return architecture
    return None


def _named_class(config: dict[str, Any]) -> Any:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names else None


def _base_architecture(config: dict[str, Any]) -> Architecture | None:
    """Return the architecture whose class without a head the configuration names (``LlamaModel``), or None."""
    found = find_architecture({"model_type": config.get("model_type")})
    named = _named_class(config)
    is_base = isinstance(named, str) and named.endswith("Model") and not named.startswith("PreTrained")
    return found if is_base else None


def _text_architecture(config: dict[str, Any]) -> Architecture | None:
    """Return the architecture of the text part of a multimodal model, where it is a supported one."""
    for name in _TEXT_CONFIGS:
        part = config.get(name)
        if isinstance(part, dict):
            # The part names a class of its own, or none.
            return find_architecture({"model_type": part.get("model_type")})
    return None
