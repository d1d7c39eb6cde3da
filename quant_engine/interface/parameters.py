"""What the parameters of a decoder block are, as data: which linears and norms it has, and how wide each is."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Width(StrEnum):
    """A number of channels that follows from a model's configuration."""

    STREAM = "hidden_size"
    FEED_FORWARD = "intermediate_size"
    GATE_AND_UP = "2 · intermediate_size"
    QUERIES = "num_attention_heads · head_dim"
    KEYS = "num_key_value_heads · head_dim"
    QUERIES_KEYS_VALUES = "(num_attention_heads + 2 · num_key_value_heads) · head_dim"


@dataclass(frozen=True)
class LinearTemplate:
    """One linear of a block; its name is relative to the block.

    Attributes:
        bias: whether it has one, or the name of the configuration's field that says so.
    """

    name: str
    outputs: Width
    inputs: Width
    bias: bool | str = False


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model class, and what the class assumes where the configuration is silent.

    Attributes:
        linears: of a block.
        norms: of a block, as wide as the stream; ``head_norms`` are as wide as a head.
        sizes: what the class assumes for each size. None is derived from the others: as many key-value heads as heads,
            and a head size of hidden size / heads.
        ties: whether the class ties the head to the embedding where the configuration does not say.
        heads_divide: whether the class requires that the hidden size is a multiple of the heads.
    """

    linears: tuple[LinearTemplate, ...]
    norms: tuple[str, ...]
    sizes: Mapping[str, int | None]
    head_norms: tuple[str, ...] = ()
    ties: bool = False
    heads_divide: bool = False


TWO_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS: Final = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
HEAD_NORMS: Final = ("self_attn.q_norm", "self_attn.k_norm")


def class_sizes(
    *,
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int | None = None,
    head_dim: int | None = None,
) -> Mapping[str, int | None]:
    """Return the sizes that a class assumes, by the names of the configuration's fields."""
    return MappingProxyType(
        {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "head_dim": head_dim,
        }
    )


def separate_linears(
    *, inputs_bias: bool | str = False, output_bias: bool | str = False, feed_forward_bias: bool | str = False
) -> tuple[LinearTemplate, ...]:
    """Return the linears of a block whose q, k, v, gate and up are linears of their own.

    Args:
        inputs_bias: of q, k and v; ``output_bias`` is that of the attention's output.
    """
    return (
        LinearTemplate("self_attn.q_proj", Width.QUERIES, Width.STREAM, inputs_bias),
        LinearTemplate("self_attn.k_proj", Width.KEYS, Width.STREAM, inputs_bias),
        LinearTemplate("self_attn.v_proj", Width.KEYS, Width.STREAM, inputs_bias),
        LinearTemplate("self_attn.o_proj", Width.STREAM, Width.QUERIES, output_bias),
        LinearTemplate("mlp.gate_proj", Width.FEED_FORWARD, Width.STREAM, feed_forward_bias),
        LinearTemplate("mlp.up_proj", Width.FEED_FORWARD, Width.STREAM, feed_forward_bias),
        LinearTemplate("mlp.down_proj", Width.STREAM, Width.FEED_FORWARD, feed_forward_bias),
    )


FUSED: Final = (
    LinearTemplate("self_attn.qkv_proj", Width.QUERIES_KEYS_VALUES, Width.STREAM),
    LinearTemplate("self_attn.o_proj", Width.STREAM, Width.QUERIES),
    LinearTemplate("mlp.gate_up_proj", Width.GATE_AND_UP, Width.STREAM),
    LinearTemplate("mlp.down_proj", Width.STREAM, Width.FEED_FORWARD),
)
"""The linears of a block that holds q, k, v as one linear, and gate and up as another."""
ATTENTION_BIASES: Final = separate_linears(inputs_bias="attention_bias", output_bias="attention_bias")
