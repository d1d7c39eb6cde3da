"""How compressed-tensors stores a linear: what ``from_pretrained`` would load for it.

Shapes: O output and I input channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.compressors.base import compress_module
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from torch import nn

from quant_engine.errors import InvalidModel, UnsupportedPolicy


@dataclass(frozen=True, kw_only=True)
class StoredLinear:
    """How one linear, or an embedding, is stored.

    Attributes:
        shape: [O, I] of the dense weight.
        parts: the type in which ``from_pretrained`` holds each of its tensors, by the last part of the tensor's name.
    """

    name: str
    scheme: QuantizationScheme
    shape: tuple[int, ...]
    parts: Mapping[str, torch.dtype]

    @property
    def static(self) -> tuple[str, ...]:
        """The names of its tensors that are fixed scales of inputs and outputs."""
        return tuple(part for part in self.parts if part.startswith(("input_", "output_")))


def scheme_of(module: nn.Module) -> QuantizationScheme | None:
    """Return the scheme that was applied to a module."""
    return getattr(module, "quantization_scheme", None)


def stored_linear(name: str, module: nn.Module, config: QuantizationConfig) -> StoredLinear:
    """Return what ``from_pretrained`` would load for a module to which ``config`` was applied."""
    scheme: Any = scheme_of(module)
    if not isinstance(module, nn.Linear | nn.Embedding) or (isinstance(module, nn.Embedding) and _rounds_more(scheme)):
        raise UnsupportedPolicy(
            detail=f"The checkpoint quantizes more than weights at {name}, a {type(module).__name__}.",
            hint="Only linears may round their inputs; attention and the key-value cache stay in floating point here.",
        )
    # The shape of the dense weight, before the module is compressed.
    shape = tuple(module.weight.shape)
    overall = CompressionFormat(config.format)
    if scheme.format is None and overall is CompressionFormat.mixed_precision:
        overall = infer_module_format(type(module), scheme)
    compress_module(module, scheme.format or overall)
    parts = {key: value.dtype for key, value in module.state_dict().items() if key != "bias" and "." not in key}
    return StoredLinear(name=name, scheme=scheme, shape=shape, parts=parts)


def _rounds_more(scheme: QuantizationScheme) -> bool:
    return scheme.input_activations is not None or scheme.output_activations is not None


def misfit(reason: str) -> InvalidModel:
    """Return the error for a checkpoint that contradicts its configuration."""
    # A library's message can be very long, so the detail is cut.
    return InvalidModel(
        detail=f"The quantized checkpoint can not be read: {reason}."[:1000],
        hint="Check that config.json belongs to these weights, and that from_pretrained loads them.",
    )
