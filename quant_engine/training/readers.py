"""Swapping the linears of a decoder layer for their quantized selves while a transform is trained.

A site's input is transformed and rounded once however many linears read it, and weights once for all batches of a step.
A fused diagonal needs no fusing here: dividing in front of the linears is the same. Shapes: B samples, T tokens,
I = D channels, O outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant_engine.models import Site

InputRounder = Callable[[Tensor], Tensor]
"""X [..., I] to Q(X A)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedSite:
    """What a site computes with for now: its input's rounder, and its weights Q(W A⁻ᵀ) in the readers' order."""

    rounder: InputRounder
    weights: Sequence[Tensor]


class SwappedReaders:
    """The readers of ``sites`` in ``layer``, which compute with whatever :meth:`use` was given last.

    Use as a context manager; on leaving it the layer is as it was.

    Args:
        layer: a decoder layer.
        prefix: of its parameters' names in the whole model.
        sites: those to quantize.
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
        """Compute with these from now on, one for each site by its name."""
        for name, readers in self._readers.items():
            self._inputs[name].rounder = quantized[name].rounder
            for reader, w_OI in zip(readers, quantized[name].weights, strict=True):
                reader.w_OI = w_OI

    def forward(self, hidden_BTD: Tensor, arguments: Mapping[str, object]) -> Tensor:
        """The layer's output [B, T, D]."""
        output = self._layer(hidden_BTD, **arguments)
        for shared in self._inputs.values():
            shared.forget()
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden


class SharedInput:
    """Rounds the tensor that several linears read, once."""

    def __init__(self, rounder: InputRounder = lambda x_TI: x_TI) -> None:
        self.rounder = rounder
        self._seen: tuple[Tensor, Tensor] | None = None

    def rounded(self, x_TI: Tensor) -> Tensor:
        """Q(X A), remembered for as long as the next linear brings the same tensor."""
        if self._seen is None or self._seen[0] is not x_TI:
            self._seen = (x_TI, self.rounder(x_TI))
        return self._seen[1]

    def forget(self) -> None:
        """Let the tensors, and the graph behind them, go."""
        self._seen = None


class _Reader(nn.Module):
    """Stands in for a linear: Q(X') Q(W')ᵀ + b."""

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
