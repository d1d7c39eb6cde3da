"""The tensors that a model class has under a configuration, without torch: names, shapes, and whether they are tied."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from quant_engine.errors import InvalidModel
from quant_engine.interface.architectures import Architecture, architecture_of
from quant_engine.interface.parameters import LinearTemplate, Width

MAX_LAYERS: Final = 1_000
MAX_SIZE: Final = 2**31 - 1
_HINT: Final = "Check config.json against the model's original."


@dataclass(frozen=True)
class ModelLayout:
    """What a model class makes of a ``config.json``.

    Attributes:
        tensors: the shape of every parameter by its name, in the model's order. The head is among them, tied or not.
        linears: (output, input) channels of every linear of the blocks, by its name. The head is not among them.
        ties: whether the configuration, or else the class, ties the head to the embedding. Weights that differ are not
            tied in spite of it.
        layers, vocabulary: the number of blocks, and of the embedding's rows.
    """

    architecture: Architecture
    tensors: Mapping[str, tuple[int, ...]]
    linears: Mapping[str, tuple[int, int]]
    ties: bool
    layers: int
    vocabulary: int


def model_layout(config: Mapping[str, Any], architecture: Architecture | None = None) -> ModelLayout:
    """Return the layout of a sanitized ``config.json``.

    Args:
        architecture: by default the one that the configuration names.

    Raises:
        UnsupportedArchitecture: the class is not supported.
        InvalidModel: a size is not a positive whole number, or the sizes do not fit each other.
    """
    architecture = architecture or architecture_of(dict(config))
    _check_values(config)
    sizes = _sizes(config, architecture)
    widths = _widths(sizes)
    layers, vocabulary, hidden = sizes["num_hidden_layers"], sizes["vocab_size"], sizes["hidden_size"]
    linears: dict[str, tuple[int, int]] = {}
    tensors: dict[str, tuple[int, ...]] = {f"{architecture.embedding}.weight": (vocabulary, hidden)}
    biased = {
        template.name: _has_bias(template, config) for template in architecture.parameters.linears
    }  # the same in every block
    for block in range(layers):
        prefix = architecture.block_prefix(block)
        for template in architecture.parameters.linears:
            shape = widths[template.outputs], widths[template.inputs]
            linears[prefix + template.name] = shape
            tensors[f"{prefix}{template.name}.weight"] = shape
            if biased[template.name]:
                tensors[f"{prefix}{template.name}.bias"] = shape[:1]
        for name, width in _norms(architecture, sizes):
            tensors[f"{prefix}{name}.weight"] = (width,)
    tensors[f"{architecture.final_norm}.weight"] = (hidden,)
    tensors[f"{architecture.head}.weight"] = (vocabulary, hidden)
    ties = _flag(config, "tie_word_embeddings", architecture.parameters.ties)
    return ModelLayout(architecture, tensors, linears, ties, layers, vocabulary)


def _norms(architecture: Architecture, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    parameters = architecture.parameters
    yield from ((name, sizes["hidden_size"]) for name in parameters.norms)
    yield from ((name, sizes["head_dim"]) for name in parameters.head_norms)


def _widths(sizes: Mapping[str, int]) -> dict[Width, int]:
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    return {
        Width.STREAM: sizes["hidden_size"],
        Width.FEED_FORWARD: sizes["intermediate_size"],
        Width.GATE_AND_UP: 2 * sizes["intermediate_size"],
        Width.QUERIES: queries,
        Width.KEYS: keys,
        Width.QUERIES_KEYS_VALUES: queries + 2 * keys,
    }


def _sizes(config: Mapping[str, Any], architecture: Architecture) -> dict[str, int]:
    """Return every size of the configuration, with what the class assumes for those that are absent."""
    assumed = architecture.parameters.sizes
    found = {name: config.get(name, default) for name, default in assumed.items()}
    for name, value in found.items():
        # A null is what the class derives from the others, where it does so.
        if not (value is None and name in ("num_key_value_heads", "head_dim")):
            _check_size(name, value, MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE)
    hidden, heads = found["hidden_size"], found["num_attention_heads"]
    if architecture.parameters.heads_divide and hidden % heads:
        raise _invalid(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = heads
    if found["head_dim"] is None:
        found["head_dim"] = hidden // heads
    if heads % found["num_key_value_heads"]:
        raise _invalid(
            f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({found['num_key_value_heads']})"
        )
    if not found["head_dim"]:
        raise _invalid(f"hidden_size ({hidden}) is smaller than num_attention_heads ({heads})")
    return found


def _check_values(config: Mapping[str, Any]) -> None:
    """Refuse values of fields that no size follows from, but that every class reads."""
    for name, (is_right, what) in _VALUES.items():
        if name in config and not is_right(config[name]):
            raise _invalid(f"{name} has to be {what}")


def _is_epsilon(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


_VALUES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "rms_norm_eps": (_is_epsilon, "a finite number of at least 0"),
    "max_position_embeddings": (lambda value: type(value) is int and value > 0, "a positive whole number"),
    "pad_token_id": (lambda value: value is None or type(value) is int, "a token id or null"),
}


def _check_size(name: str, value: Any, largest: int) -> None:
    # A bool is an int for Python.
    if type(value) is not int or not 0 < value <= largest:
        raise _invalid(f"{name} has to be a whole number from 1 to {largest:,}")


def _has_bias(template: LinearTemplate, config: Mapping[str, Any]) -> bool:
    return template.bias if isinstance(template.bias, bool) else _flag(config, template.bias, default=False)


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise _invalid(f"{name} has to be true or false")
    return value


def _invalid(reason: str) -> InvalidModel:
    return InvalidModel(detail=f"The model's config.json can not be used: {reason}.", hint=_HINT)
