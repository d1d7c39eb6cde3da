"""Round the activations of a model in the basis of its rotated version, with unchanged weights.

If R1 and R2 are fused into a checkpoint, each linear reads a rotated tensor: x̂ R1 after a norm (x̂ is the norm's
output without its weight γ, which is moved into the linear), v R2 in each value head. To rotate, round and rotate back
gives the same outputs without a change of weights, and is differentiable in the rotations (SpinQuant, arXiv
2405.16406, section 3).

Shapes: B samples, T tokens, D hidden size, K head size, H heads, L blocks, I = H·K or the inner width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from quant_engine.grids import fake_quantize_activation
from quant_engine.hadamard import hadamard_order, hadamard_transform
from quant_engine.models import ProducerKind, Site
from quant_engine.policy import ActivationQuantization
from quant_engine.training.quantized_linears import SharedInput


@dataclass(eq=False)
class LiveRotations:
    """The current R1 and R2, in the model's dtype and attached to the learned parameters. New ones are assigned."""

    r1_DD: Tensor
    r2_LKK: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _RoundedSite:
    """Rounds the input of one site under the current rotations."""

    site: Site
    rotations: LiveRotations
    activations: ActivationQuantization
    online: bool

    def behind_norm(self, gain_D: Tensor, x_BTD: Tensor) -> Tensor:
        """γ ⊙ (Q(x̂ R1) R1ᵀ)."""
        r1_DD = self.rotations.r1_DD
        return (self._rounded(x_BTD @ r1_DD) @ r1_DD.mT) * gain_D

    def in_heads(self, x_BTI: Tensor) -> Tensor:
        """Round X after R2 in each head and the online Hadamard over all heads, and rotate back."""
        if self.rotations.r2_LKK is None:
            return self.inner(x_BTI)
        r2_KK = self.rotations.r2_LKK[self.site.block]
        return _per_head(self.inner(_per_head(x_BTI, r2_KK)), r2_KK.mT)

    def inner(self, x_BTI: Tensor) -> Tensor:
        """Round X after the online Hadamard, if there is one, and rotate back."""
        if not self.online:
            return self._rounded(x_BTI)
        order = hadamard_order(x_BTI.shape[-1])
        return hadamard_transform(self._rounded(hadamard_transform(x_BTI, order=order)), order=order, inverse=True)

    def _rounded(self, x_BTI: Tensor) -> Tensor:
        return fake_quantize_activation(x_BTI, self.activations)


def _per_head(x_BTI: Tensor, r_KK: Tensor) -> Tensor:
    x_BTHK = x_BTI.reshape(*x_BTI.shape[:-1], -1, r_KK.shape[0])  # [B, T, I] → [B, T, H, K]
    return (x_BTHK @ r_KK).flatten(-2)


@contextmanager
def rounded_inputs(
    model: nn.Module,
    sites: Sequence[Site],
    rotations: LiveRotations,
    activations: Mapping[str, ActivationQuantization],
    *,
    online: bool,
) -> Iterator[None]:
    """Make ``model`` compute as its rotated version with rounded activations, as long as the context lasts.

    Args:
        sites: the sites whose readers are quantized.
        rotations: read at every forward.
        activations: the activation format of each site, by its name.
        online: whether the attention's output and the feed-forward's inner tensor get an online Hadamard.
    """
    undo: list[Callable[[], None]] = []
    # Inside ``try``, so that the changes already made are undone if a later site fails.
    try:
        for site in sites:
            rounded = _RoundedSite(site=site, rotations=rotations, activations=activations[site.name], online=online)
            undo += _ATTACH[site.kind](model, rounded)
        yield
    finally:
        for each in undo:
            each()


def _attach_behind_norm(model: nn.Module, rounded: _RoundedSite) -> list[Callable[[], None]]:
    """Make the norm return x̂, and multiply by γ before every linear that reads it."""
    site = rounded.site
    norm = model.get_submodule(site.producer)
    stored = norm.get_parameter("weight")
    gain_D = stored.detach() + site.norm_offset
    # A new parameter, because the stored one may be a view of a read-only file.
    neutral = torch.full_like(gain_D, 1.0 - site.norm_offset)
    norm.register_parameter("weight", nn.Parameter(neutral, requires_grad=False))
    shared = SharedInput(partial(rounded.behind_norm, gain_D))
    undo: list[Callable[[], None]] = [partial(norm.register_parameter, "weight", stored)]
    # Readers that are not quantized need γ too, because the norm no longer applies it.
    for name in site.all_readers:
        change = shared.rounded if name in site.readers else partial(torch.mul, gain_D)
        undo.append(_before(model, name, change))
    # The cached input would otherwise hold a graph in memory after the last reader.
    last = model.get_submodule(site.all_readers[-1]).register_forward_hook(lambda *_: shared.forget())
    return [*undo, last.remove]


def _attach_heads(model: nn.Module, rounded: _RoundedSite) -> list[Callable[[], None]]:
    return [_before(model, name, rounded.in_heads) for name in rounded.site.readers]


def _attach_inner(model: nn.Module, rounded: _RoundedSite) -> list[Callable[[], None]]:
    return [_before(model, name, rounded.inner) for name in rounded.site.readers]


_ATTACH: Final[dict[ProducerKind, Callable[[nn.Module, _RoundedSite], list[Callable[[], None]]]]] = {
    ProducerKind.NORM_WEIGHT: _attach_behind_norm,
    ProducerKind.VALUE_ROWS: _attach_heads,
    ProducerKind.LINEAR_ROWS: _attach_inner,
}


def _before(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Apply ``change`` to the input of a linear, and return the function that undoes this."""

    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    return model.get_submodule(name).register_forward_pre_hook(hook).remove
