"""A site's transform with its parameters exposed to an optimizer. The trained parameters are those that are exported.

A policy names what is learned: the diagonal (``scales``), the matrices of the online part (``transform``: FlatQuant's
Kronecker factors, AffineQuant's blocks), the clipping of weights (``weight_clip``: OmniQuant, arXiv 2308.13137) and of
activations (``activation_clip``: FlatQuant, arXiv 2410.09426). Hadamards and permutations are not learned.

Shapes: T tokens, O outputs of every linear that reads the site, I = D channels, G scales of an output's row.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from quant_engine.evaluation.layer_errors import rounded_weights
from quant_engine.grids import IntegerGrid, fake_quantize_activation, fake_quantize_weight, grid_of, weight_scale
from quant_engine.policy import BlockTraining, SiteQuantization, TransformKind, WeightQuantization
from quant_engine.training.learned_matrices import LearnedMatrix, LearnedRotation, inverse_transpose
from quant_engine.training.quantized_linears import QuantizedSite
from quant_engine.training.scale_parameter import scales_from, theta_from
from quant_engine.transforms import SitePlan, transform_activation, transform_weight
from quant_engine.transforms.composition import apply_all
from quant_engine.transforms.primitives import Block, Dense, Kronecker, Primitive

_MATRIX_KINDS: Final = (Block, Dense, Kronecker)
_GRADUAL_KINDS: Final = (Block, Dense)  # AffineQuant's matrices; FlatQuant's Kronecker factors have no mask
_WIDEST: Final = 0.982
"""Largest ratio that clipping starts from, sigmoid(4) as in FlatQuant: at 1 the sigmoid would have no gradient."""


class LearnablePlan(nn.Module):
    """A :class:`SitePlan` whose parameters are learned.

    Args:
        start: the plan that learning starts from.
        training: only ``learn`` and ``gradual`` are used.
        linears: the weights [O, I] of the linears that read the site, in their order.
        quantization: the number formats of these linears and of their input.
        tied: whether neighboring heads share one diagonal (:attr:`Site.tied` > 1), which then is not learned.
    """

    def __init__(
        self,
        start: SitePlan,
        training: BlockTraining,
        linears: Iterable[Tensor],
        quantization: SiteQuantization,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self._weights = tuple(linears)
        self._joined_OI = torch.cat(self._weights)
        start = start.to(self.device)
        self._start, self._quantization = start, quantization
        learn = frozenset(training.learn)
        # A common factor of s changes nothing; without it one learning rate means the same on every site.
        self._mean = 1.0 if start.scales_D is None else float(start.scales_D.double().log().mean().exp())
        self._theta_D: nn.Parameter | None = None
        if start.scales_D is not None and "scales" in learn and not tied:
            self._theta_D = nn.Parameter(theta_from(start.scales_D / self._mean))
        make = partial(_learner, kind=start.kind, gradual=training.gradual) if "transform" in learn else _Fixed
        self._online: tuple[_Fixed | _Learned, ...] = tuple(make(each) for each in start.online)
        self._registered = nn.ModuleList(self._online)  # a module does not find parameters in a tuple
        self._weight_logit_OG = self._weight_logits() if "weight_clip" in learn else None
        self._activation_logit = self._activation_logits() if "activation_clip" in learn else None

    @property
    def device(self) -> torch.device:
        """The device of the weights and of all parameters."""
        return self._joined_OI.device

    def clip_parameters(self) -> list[nn.Parameter]:
        """The logits of the clip ratios, which have their own learning rate."""
        return [each for each in (self._weight_logit_OG, self._activation_logit) if each is not None]

    def transform_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not clip logits."""
        # By identity, because ``in`` would compare tensors by their values.
        clips = {id(each) for each in self.clip_parameters()}
        return [each for each in self.parameters() if id(each) not in clips]

    def advance(self, share: float) -> None:
        """Set the share of the training that is done, for matrices whose entries are freed gradually."""
        for each in self._online:
            each.advance(share)

    def quantized(self) -> QuantizedSite:
        """The site's rounder and rounded weights, differentiable in the parameters."""
        live = self.live()
        ratio = None if self._activation_logit is None else self._activation_logit.sigmoid()
        activations = self._quantization.activations
        fixed = self._start.clip_of(activations)  # used where no clip is learned

        def rounder(x_TI: Tensor) -> Tensor:
            return fake_quantize_activation(
                transform_activation(x_TI, live), activations, clip_ratio=fixed if ratio is None else ratio
            )

        return QuantizedSite(rounder=rounder, weights=self.quantized_weights())

    def live(self) -> SitePlan:
        """The transform without its clips, differentiable in the parameters."""
        return replace(
            self._start,
            scales_D=self._scales(),
            online=tuple(each.primitive() for each in self._online),
        )

    def quantized_weights(self) -> tuple[Tensor, ...]:
        """Q(W A⁻ᵀ) of each linear, differentiable in the parameters.

        A⁻ᵀ is applied as a product with inverted matrices. This takes a sixth of the time of :func:`transform_weight`,
        which solves and checks, and gives the same result up to rounding.
        """
        scales_D = self._scales()
        # All linears of the site are transformed in one product, then split.
        w_OI = self._joined_OI if scales_D is None else self._joined_OI * scales_D
        if self._start.permutation_D is not None:
            w_OI = w_OI[:, self._start.permutation_D]
        w_OI = apply_all([each.contragredient() for each in self._online], w_OI)
        moved = torch.split(w_OI, [each.shape[0] for each in self._weights])
        clips = zip(moved, self._clip_rows(), strict=True)
        return tuple(_quantized(each_OI, self._quantization.weights, ratio_OG) for each_OI, ratio_OG in clips)

    @torch.no_grad()
    def plan(self) -> SitePlan:
        """The learned plan, detached from the parameters."""
        live = self.live()
        clip_ratio = self._start.clip_ratio
        if self._activation_logit is not None:
            clip_ratio = float(self._activation_logit.sigmoid())
        weight_clip_OG = self._start.weight_clip_OG
        if self._weight_logit_OG is not None:
            weight_clip_OG = self._weight_logit_OG.sigmoid()
        return replace(
            live,
            label="learned",
            scales_D=None if live.scales_D is None else live.scales_D.detach().clone(),
            online=tuple(_detached(each) for each in live.online),
            clip_ratio=clip_ratio,
            weight_clip_OG=weight_clip_OG,
        )

    def _scales(self) -> Tensor | None:
        if self._theta_D is None:
            return self._start.scales_D
        return scales_from(self._theta_D) * self._mean

    def _clip_rows(self) -> list[Tensor | None]:
        clip_OG = self._start.weight_clip_OG
        if self._weight_logit_OG is not None:
            clip_OG = self._weight_logit_OG.sigmoid()
        return split_clip(clip_OG, self._weights)

    def _activation_logits(self) -> nn.Parameter | None:
        """One logit for the site; None where its input is not rounded to integers, or has no clip."""
        activations = self._quantization.activations
        clips = activations.symmetric and activations.group_size is None
        if not clips or not isinstance(grid_of(activations.format), IntegerGrid):
            return None
        ratio = self._start.clip_of(activations)
        return nn.Parameter(_logit(torch.tensor(ratio, device=self.device)))

    def _weight_logits(self) -> nn.Parameter | None:
        """One logit for each weight scale; None where a scale has no row of its own.

        They start from the ratios of the start plan, or else from those with the least squared error.
        """
        weights = self._quantization.weights
        if grid_of(weights.format) is None or weights.granularity == "tensor":
            return None
        if self._start.weight_clip_OG is not None:
            return nn.Parameter(_logit(self._start.weight_clip_OG))
        moved_OI = transform_weight(self._joined_OI, self._start)
        # ρ of each scale is the quotient of the scale with the MSE clip and the scale without a clip.
        clipped, whole = (weights.model_copy(update={"clip": clip}) for clip in ("mse", "none"))
        return nn.Parameter(_logit(weight_scale(moved_OI, clipped) / weight_scale(moved_OI, whole)))


def quantized_site(linears: Iterable[Tensor], plan: SitePlan, quantization: SiteQuantization) -> QuantizedSite:
    """The site with the weights ``linears`` [O, I] under a finished plan."""
    return QuantizedSite(
        rounder=partial(plan_inputs, plan=plan, quantization=quantization),
        weights=plan_weights(linears, plan, quantization),
    )


def plan_inputs(x_TI: Tensor, plan: SitePlan, quantization: SiteQuantization) -> Tensor:
    """Q(X A) [..., I] under a finished plan, on the grid of the engines."""
    activations = quantization.activations
    moved_TI = transform_activation(x_TI, plan)
    return fake_quantize_activation(moved_TI, plan.clipped(activations), peak=plan.input_peak)


def plan_weights(linears: Iterable[Tensor], plan: SitePlan, quantization: SiteQuantization) -> tuple[Tensor, ...]:
    """Q(W A⁻ᵀ) of each linear under a finished plan, rounded as for layer errors.

    Raises:
        NumericalInstability: A can not be inverted.
    """
    return tuple(rounded_weights(tuple(linears), plan, quantization.weights))


def split_clip(clip_OG: Tensor | None, linears: Iterable[Tensor]) -> list[Tensor | None]:
    """Split the clip ratios of all linears of a site into those of each linear."""
    sizes = [w_OI.shape[0] for w_OI in linears]
    return [None] * len(sizes) if clip_OG is None else list(torch.split(clip_OG, sizes))


def _quantized(w_OI: Tensor, weights: WeightQuantization, ratio_OG: Tensor | None) -> Tensor:
    ratio_R1 = None if ratio_OG is None else ratio_OG.reshape(-1, 1)
    return fake_quantize_weight(w_OI, weights, clip_ratio_R1=ratio_R1)


class _Fixed(nn.Module):
    """A primitive that is not learned."""

    def __init__(self, primitive: Primitive) -> None:
        super().__init__()
        self._primitive, self._contragredient = primitive, _contragredient(primitive)

    def advance(self, share: float) -> None:
        """Do nothing: the primitive does not change."""

    def primitive(self) -> Primitive:
        """P."""
        return self._primitive

    def contragredient(self) -> Primitive:
        """P⁻ᵀ."""
        return self._contragredient


class _Learned(nn.Module):
    """A primitive made of matrices, each a parameter."""

    def __init__(self, primitive: Primitive, make: Callable[[Tensor], LearnedMatrix | LearnedRotation]) -> None:
        super().__init__()
        self._start = primitive
        self._matrices = {key: make(value) for key, value in primitive.tensors().items()}
        self._registered = nn.ModuleDict(self._matrices)  # a module does not find parameters in a dict

    def advance(self, share: float) -> None:
        """Set the share of the training that is done."""
        for matrix in self._matrices.values():
            matrix.advance(share)

    def primitive(self) -> Primitive:
        """P, differentiable in the parameters."""
        return replace(self._start, **{key: each.matrix() for key, each in self._matrices.items()})

    def contragredient(self) -> Primitive:
        """P⁻ᵀ, differentiable in the parameters.

        The inverse transpose of a block matrix or a Kronecker product is built from those of its parts.
        """
        return replace(self._start, **{key: each.inverse_transpose() for key, each in self._matrices.items()})


def _learner(primitive: Primitive, *, kind: TransformKind, gradual: bool) -> _Fixed | _Learned:
    if not isinstance(primitive, _MATRIX_KINDS):
        return _Fixed(primitive)
    if kind is TransformKind.KRONECKER_ROTATION:
        return _Learned(primitive, LearnedRotation)
    return _Learned(primitive, partial(LearnedMatrix, gradual=gradual and isinstance(primitive, _GRADUAL_KINDS)))


def _contragredient(primitive: Primitive) -> Primitive:
    """P⁻ᵀ as a primitive. Hadamards and permutations are orthogonal, so theirs is P itself."""
    inverted = isinstance(primitive, _MATRIX_KINDS)
    return _with_tensors(primitive, inverse_transpose) if inverted else primitive


def _detached(primitive: Primitive) -> Primitive:
    return _with_tensors(primitive, lambda value: value.detach().clone())


def _with_tensors(primitive: Primitive, change: Callable[[Tensor], Tensor]) -> Primitive:
    return replace(primitive, **{key: change(value) for key, value in primitive.tensors().items()})


def _logit(ratio: Tensor) -> Tensor:
    return ratio.detach().float().clamp(max=_WIDEST).logit()
