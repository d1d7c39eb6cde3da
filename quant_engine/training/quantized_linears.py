"""Replace the linears of a decoder layer by quantized ones while a transform is trained.

A site's input is transformed and rounded once, even if several linears read it. Weights are rounded once for all
batches of a step. The diagonal is not fused here: dividing the input before the linears gives the same result.

Shapes: B samples, T tokens, I = D channels, O outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant_engine.models import Site

InputRounder = Callable[[Tensor], Tensor]
"""Maps X [..., I] to Q(X A)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedSite:
    """The quantization of a site: the rounder of its input, and its weights Q(W A⁻ᵀ) in the order of its readers."""

    rounder: InputRounder
    weights: Sequence[Tensor]


class SwappedReaders:
    """Replaces the readers of ``sites`` in ``layer``. They compute with what :meth:`use` received last.

    Use it as a context manager. At the end the layer is unchanged.

    Args:
        layer: a decoder layer.
        prefix: the prefix of its parameters' names in the whole model.
        sites: the sites to quantize.
    """

    def __init__(self, layer: nn.Module, prefix: str, sites: Sequence[Site]) -> None:
        self._layer, self._prefix, self._sites = layer, prefix, sites
        self._stack = ExitStack()
        self._inputs = {site.name: SharedInput() for site in sites}
        self._readers: dict[str, tuple[_Reader, ...]] = {}

    def __enter__(self) -> "SwappedReaders":
        for site in self._sites:
            shared = self._inputs[site.name]
            names = [name.removeprefix(self._prefix) for name in site.readers]
            self._readers[site.name] = tuple(
                self._stack.enter_context(_swapped(self._layer, name, shared)) for name in names
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def use(self, quantized: Mapping[str, QuantizedSite]) -> None:
        """Set the quantization of each site, by its name, for all following calls of :meth:`forward`."""
        for name, readers in self._readers.items():
            self._inputs[name].rounder = quantized[name].rounder
            for reader, w_OI in zip(readers, quantized[name].weights, strict=True):
                reader.w_OI = w_OI

    def forward(self, hidden_BTD: Tensor, arguments: Mapping[str, object]) -> Tensor:
        """The layer's output [B, T, D]."""
        output = self._layer(hidden_BTD, **arguments)
        # The cached inputs hold the graph of this forward, so they must not outlive it.
        for shared in self._inputs.values():
            shared.forget()
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden


class SharedInput:
    """Rounds the tensor that several linears read only once."""

    def __init__(self, rounder: InputRounder = lambda x_TI: x_TI) -> None:
        self.rounder = rounder
        self._seen: tuple[Tensor, Tensor] | None = None

    def rounded(self, x_TI: Tensor) -> Tensor:
        """Q(X A), cached until a linear passes another tensor."""
        # By identity: the linears of a site receive the same tensor object.
        if self._seen is None or self._seen[0] is not x_TI:
            self._seen = (x_TI, self.rounder(x_TI))
        return self._seen[1]

    def forget(self) -> None:
        """Release the cached tensors and their graph."""
        self._seen = None


class _Reader(nn.Module):
    """Replaces a linear and computes Q(X') Q(W')ᵀ + b."""

    def __init__(self, linear: nn.Module, shared: SharedInput) -> None:
        super().__init__()
        bias = linear.bias
        self._bias_O = bias if isinstance(bias, Tensor) else None
        self._shared = shared
        self.w_OI = torch.empty(0)

    def forward(self, x_TI: Tensor) -> Tensor:
        return functional.linear(self._shared.rounded(x_TI), self.w_OI, self._bias_O)


@contextmanager
def _swapped(layer: nn.Module, name: str, shared: SharedInput) -> Iterator[_Reader]:
    linear = layer.get_submodule(name)
    reader = _Reader(linear, shared)
    layer.set_submodule(name, reader)
    try:
        yield reader
    finally:
        layer.set_submodule(name, linear)
