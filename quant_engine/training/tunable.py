"""A rounded model whose scales and norms are parameters. The codes of its weights are fixed.

A parameter θ multiplies what is stored by exp(θ), so that a scale stays positive, and one learning rate means the same
for all. Shapes: T tokens, O outputs, I inputs, G scales of an output's row, D channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from quant_engine.grids import e4m3
from quant_engine.training.quantized_linears import SharedInput

LEARNABLE_TYPES: Final = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn})
"""The stored types of scales that are not confined to powers of two."""


class TunableLinear(nn.Module):
    """A linear with rounded weights, which computes Q(X') (f ⊙ Q(W'))ᵀ + b with a learned factor f of each scale.

    Args:
        w_OI: Q(W'), codes times scales.
        scale: the stored scales, [O, G] or [1]; None, or a type that is none of :data:`LEARNABLE_TYPES`, learns none.
        shared: rounds the input, once for all linears that read it.
    """

    def __init__(self, w_OI: Tensor, bias_O: Tensor | None, scale: Tensor | None, shared: SharedInput) -> None:
        super().__init__()
        self._w_OI, self._bias_O, self._shared = w_OI, bias_O, shared
        learned = scale is not None and scale.dtype in LEARNABLE_TYPES
        self.scale = LearnedScale(scale) if learned and scale is not None else None

    def forward(self, x_TI: Tensor) -> Tensor:
        x_TI = self._shared.rounded(x_TI)
        if self.scale is None:
            return functional.linear(x_TI, self._w_OI, self._bias_O)
        factor = self.scale.factor()
        if factor.shape[-1] == 1:
            # One scale for a row, or for all: on the output it needs no product with the gradient of a whole weight.
            y_TO = functional.linear(x_TI, self._w_OI) * factor.flatten()
            return y_TO if self._bias_O is None else y_TO + self._bias_O
        w_OGI = self._w_OI.reshape(*factor.shape, -1) * factor.unsqueeze(-1)  # [O, I] → [O, G, I / G]
        return functional.linear(x_TI, w_OGI.reshape(self._w_OI.shape), self._bias_O)


class LearnedScale(nn.Module):
    """The factors of stored scales."""

    def __init__(self, stored: Tensor) -> None:
        super().__init__()
        self._stored = stored
        self.theta = nn.Parameter(torch.zeros(stored.shape, dtype=torch.float32, device=stored.device))

    def factor(self) -> Tensor:
        """The factor of each scale as it can be stored, with a straight-through gradient."""
        free = self.theta.exp()
        if self._stored.dtype is not torch.float8_e4m3fn:
            return free
        # e4m3 has three bits of mantissa, so most small changes of a scale are rounded away again.
        rounded = self.stored().float() / self._stored.float()
        return free + (rounded - free).detach()

    @torch.no_grad()
    def stored(self) -> Tensor:
        """The learned scales in their stored type. A scale that would become zero stays what it was."""
        wide = self._stored.float() * self.theta.exp()
        found = e4m3(wide) if self._stored.dtype is torch.float8_e4m3fn else wide.to(self._stored.dtype)
        return torch.where(found.float() > 0, found.float(), self._stored.float()).to(self._stored.dtype)


class LearnedNorm(nn.Module):
    """A parametrization of a norm's weight [D] that multiplies by (offset + weight)."""

    def __init__(self, width: int, offset: float, device: torch.device) -> None:
        super().__init__()
        self._offset = offset
        self.theta = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, weight_D: Tensor) -> Tensor:
        return (weight_D + self._offset) * self.theta.exp() - self._offset


class TunableNorms:
    """The norms of a model's blocks with learned weights, by the names of their modules.

    Args:
        prefix: of the blocks' names. The norm behind them stays: it belongs to what is never quantized.
        offset: what every norm adds to its weight.
    """

    def __init__(self, model: nn.Module, prefix: str, offset: float) -> None:
        # In the supported classes, every weight with a single axis is a norm's.
        self._modules = {
            name.removesuffix(".weight"): model.get_submodule(name.removesuffix(".weight"))
            for name, each in list(model.named_parameters())
            if each.ndim == 1 and name.startswith(prefix) and name.endswith(".weight")
        }
        self._learned = {}
        for name, module in self._modules.items():
            weight_D = module.get_parameter("weight")
            learned = LearnedNorm(len(weight_D), offset, weight_D.device)
            parametrize.register_parametrization(module, "weight", learned)
            self._learned[name] = learned

    def parameters(self) -> list[nn.Parameter]:
        """One θ for each norm."""
        return [each.theta for each in self._learned.values()]

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The learned weights by their parameters' names, fp32."""
        return {f"{name}.weight": cast(Tensor, each.weight).detach().clone() for name, each in self._modules.items()}


def learned_scales(linears: Mapping[str, TunableLinear]) -> Iterator[tuple[str, LearnedScale]]:
    """Yield the scales that are learned, by the names of their linears."""
    for name, linear in linears.items():
        if linear.scale is not None:
            yield name, linear.scale


def forget_inputs(shared: Sequence[SharedInput]) -> None:
    """Release the inputs of the last forward, which hold its graph."""
    for each in shared:
        each.forget()
