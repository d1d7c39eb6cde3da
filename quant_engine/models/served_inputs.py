"""Round the integer inputs of compressed-tensors' linears as engines do.

Two grids for dynamic integer inputs are in use. Engines divide a token's absmax by 127 (7 at four bits); this is what a
user is served, and what is measured. compressed-tensors' own forward in Python, which plain transformers runs, divides
it by 127.5 (7.5). Its perplexity is a second figure (docs/decisions/0031).
"""

from enum import StrEnum
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from torch import nn

from quant_engine.online.grid import ServedIntegers


class ActivationGrid(StrEnum):
    """Whose scale dynamic integer activations have."""

    ENGINES = "engines"
    """absmax / (2^(b−1) − 1): vLLM, TensorRT-LLM, Humming."""
    COMPRESSED_TENSORS = "compressed-tensors"
    """absmax / (2^(b−1) − ½): compressed-tensors' forward in Python."""


def served_integers(arguments: QuantizationArgs | None) -> ServedIntegers | None:
    """Return how engines round an input on a grid of their own; None for all other inputs."""
    if arguments is None or arguments.type != QuantizationType.INT or arguments.dynamic is not True:
        return None
    bits, strategy = int(arguments.num_bits), arguments.strategy
    if strategy == QuantizationStrategy.TOKEN:
        return ServedIntegers(bits, symmetric=bool(arguments.symmetric))
    if strategy == QuantizationStrategy.GROUP and arguments.symmetric:
        return ServedIntegers(bits, arguments.group_size)
    return None


def released_integers(linear: nn.Module, grid: ActivationGrid) -> ServedIntegers | None:
    """Take the rounding of its input out of a linear's ``quantization_scheme``, and return it.

    Returns:
        None, and the scheme is unchanged, where compressed-tensors' forward has to round.
    """
    scheme: Any = linear.quantization_scheme
    served = served_integers(scheme.input_activations) if grid is ActivationGrid.ENGINES else None
    if served is not None:
        # A copy, because linears of a group share their scheme.
        linear.quantization_scheme = scheme.model_copy(update={"input_activations": None})
    return served


def round_as_served(linear: nn.Module, grid: ActivationGrid) -> None:
    """Round the input of ``linear`` on ``grid``, after everything that is done to it before the forward."""
    served = released_integers(linear, grid)
    if served is not None:
        linear.register_forward_pre_hook(lambda _module, inputs: (served.rounded(inputs[0]), *inputs[1:]))
