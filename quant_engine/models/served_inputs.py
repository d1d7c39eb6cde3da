"""Round the integer inputs of compressed-tensors' linears as engines do.

Two grids for dynamic integer inputs are in use. Engines divide a token's absmax by 127 (7 at four bits); this is what a
user is served, and what is measured. compressed-tensors' own forward in Python, which plain transformers runs, divides
it by 127.5 (7.5). Its perplexity is a second figure (docs/decisions/0031).
"""

from enum import StrEnum
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from torch import nn

from quant_engine.online.grid import rounded_token


class ActivationGrid(StrEnum):
    """Whose scale dynamic integer activations have."""

    ENGINES = "engines"
    """absmax / (2^(b−1) − 1): vLLM, TensorRT-LLM, Humming."""
    COMPRESSED_TENSORS = "compressed-tensors"
    """absmax / (2^(b−1) − ½): compressed-tensors' forward in Python."""


def served_bits(arguments: QuantizationArgs | None) -> int | None:
    """Return the bits of inputs that engines round on a grid of their own; None for all other inputs."""
    if arguments is None or arguments.type != QuantizationType.INT:
        return None
    whole_tokens = arguments.strategy == QuantizationStrategy.TOKEN and arguments.symmetric
    return int(arguments.num_bits) if whole_tokens and arguments.dynamic is True else None


def released_bits(linear: nn.Module, grid: ActivationGrid) -> int | None:
    """Take the rounding of its input out of a linear's ``quantization_scheme``, and return its bits.

    Returns:
        None, and the scheme is unchanged, where compressed-tensors' forward has to round.
    """
    scheme: Any = linear.quantization_scheme
    bits = served_bits(scheme.input_activations) if grid is ActivationGrid.ENGINES else None
    if bits is not None:
        # A copy, because linears of a group share their scheme.
        linear.quantization_scheme = scheme.model_copy(update={"input_activations": None})
    return bits


def round_as_served(linear: nn.Module, grid: ActivationGrid) -> None:
    """Round the input of ``linear`` on ``grid``, after everything that is done to it before the forward."""
    bits = released_bits(linear, grid)
    if bits is not None:
        linear.register_forward_pre_hook(lambda _module, inputs: (rounded_token(inputs[0], bits), *inputs[1:]))
