"""Build a site's plan from a policy's transform, with one builder for each kind.

Shapes: T tokens, D channels, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_order
from quant_engine.policy import Transform, TransformKind
from quant_engine.transforms.closed_form import capped_tokens, cat_blocks, covariance_of, wush_blocks
from quant_engine.transforms.kronecker import kronecker_hadamard
from quant_engine.transforms.low_precision import narrowed
from quant_engine.transforms.permutation import correlated_groups, duquant, zigzag_permutation
from quant_engine.transforms.plan import SitePlan
from quant_engine.transforms.primitives import Block, Hadamard, Permutation, Primitive
from quant_engine.transforms.scales import scale_policy
from quant_engine.transforms.statistics import ChannelStatistics

CLOSED_FORMS: Final = (TransformKind.CAT, TransformKind.WUSH, TransformKind.SMOOTH_CAT)
"""The kinds that are computed from two covariances."""

_DUQUANT_BLOCK: Final = 128
"""The largest block of DuQuant where the policy names no size, as in the paper."""
_AFFINE_BLOCK: Final = 64
"""The largest learned block where the policy names no size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tie:
    """The shared diagonal of grouped-query heads.

    Attributes:
        pooled_w: the weights, pooled over heads like the statistics.
        index_D: the parameter that each channel uses.
    """

    pooled_w: Tensor
    index_D: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Evidence:
    w_OD: Tensor
    tokens: Callable[[], Tensor] | None

    def fit_tokens(self) -> Tensor:
        if self.tokens is None:
            raise ValueError("this transform is built from tokens, and none were given")
        return self.tokens()


def build_plan(
    transform: Transform,
    stats: ChannelStatistics,
    w_OD: Tensor,
    *,
    tokens: Callable[[], Tensor] | None = None,
    tie: Tie | None = None,
) -> SitePlan:
    """Build the plan of a policy's ``transform`` for a site.

    Args:
        stats: the statistics of the activations; on pooled channels where there is a ``tie``.
        w_OD: the rows of every linear that reads the site.
        tokens: returns the fit tokens [T, D]; only the closed forms and DuQuant call it.

    Raises:
        UnsupportedPolicy: ``block_size`` does not fit the site's width.
        KeyError: the statistics lack the quantile or the norm that the scale policy reads.
        NumericalInstability: a statistic or a covariance is not finite, or can not be inverted.
    """
    scales_D = _scales(transform, stats, w_OD, tie) if transform.kind.scales_channels else None
    online = _ONLINE[transform.kind](transform, _Evidence(w_OD=w_OD, tokens=tokens), scales_D)
    permutation_D = _permutation(transform, stats, w_OD)
    if scales_D is None:
        # A closed form reads α as its balance; for other kinds without scales α has no meaning.
        alpha = transform.alpha if transform.kind in CLOSED_FORMS else None
        return SitePlan(kind=transform.kind, alpha=alpha, permutation_D=permutation_D, online=online)
    return SitePlan(
        kind=transform.kind,
        alpha=transform.alpha,
        statistic=transform.statistic,
        label=transform.statistic.kind,
        scales_D=scales_D,
        permutation_D=permutation_D,
        online=online,
    )


def _scales(transform: Transform, stats: ChannelStatistics, w_OD: Tensor, tie: Tie | None) -> Tensor:
    if tie is None:
        return scale_policy(stats, w_OD, transform.alpha, transform.statistic)
    return scale_policy(stats, tie.pooled_w, transform.alpha, transform.statistic)[tie.index_D]


def _permutation(transform: Transform, stats: ChannelStatistics, w_OD: Tensor) -> Tensor | None:
    """The zigzag order over the blocks of the Hadamard, by the channels' rms · ‖W_j‖; None where one block has all.

    The product is that of both sides after any diagonal. By the peaks, as in DuQuant, E was 1.8 % above that of one
    Hadamard over all channels, by the product 1.0 % (SmolLM2-135M, 13 ``down_proj``, held out).
    """
    if transform.permutation == "none":
        return None
    order, width = _order(transform, w_OD.shape[-1]), w_OD.shape[-1]
    if order == width:
        return None
    return zigzag_permutation(stats.l2_D.to(w_OD.device) * torch.linalg.vector_norm(w_OD, dim=0), order)


def _order(transform: Transform, width: int) -> int:
    return hadamard_order(width, transform.block_size, power_of_two=transform.orders == "power_of_two")


_Online = tuple[Primitive, ...]


def _nothing(_transform: Transform, _evidence: _Evidence, _scales: Tensor | None) -> _Online:
    return ()


def _hadamard(transform: Transform, evidence: _Evidence, _scales: Tensor | None) -> _Online:
    return (Hadamard(order=_order(transform, evidence.w_OD.shape[-1])),)


def _kronecker(_transform: Transform, evidence: _Evidence, _scales: Tensor | None) -> _Online:
    return (kronecker_hadamard(evidence.w_OD.shape[-1]).to(evidence.w_OD.device),)


def _duquant(transform: Transform, evidence: _Evidence, scales_D: Tensor | None) -> _Online:
    x_TD = evidence.fit_tokens()
    if scales_D is not None:
        x_TD = x_TD / scales_D.to(x_TD)
    peak_D = x_TD.abs().amax(dim=0)
    size = transform.block_size or _largest_block(peak_D.shape[0], _DUQUANT_BLOCK)
    return duquant(peak_D, block_size=size, x_TI=x_TD)


def _affine(transform: Transform, evidence: _Evidence, _scales: Tensor | None) -> _Online:
    """The identity in blocks, from which a training starts (AffineQuant, arXiv 2403.12544)."""
    width, device = evidence.w_OD.shape[-1], evidence.w_OD.device
    # ``hadamard_order`` returns the block size after checking it.
    size = hadamard_order(width, transform.block_size) if transform.block_size else _largest_block(width, _AFFINE_BLOCK)
    return (Block(blocks_NKK=torch.eye(size, device=device).repeat(width // size, 1, 1)),)


def _smooth_cat(transform: Transform, evidence: _Evidence, scales_D: Tensor | None) -> _Online:
    """CAT after the diagonal: one matrix, or blocks of correlated channels and a Hadamard over all channels."""
    sigma_x_DD, sigma_w_DD = _covariances(transform, evidence, scales_D)
    fields = _closed_form_fields(transform)
    width = sigma_x_DD.shape[-1]
    if transform.block_size in (None, width):
        return cat_blocks(sigma_x_DD, sigma_w_DD, **fields)
    # A block can use only correlations inside it, so channels that correlate are moved into one block first.
    index_D = correlated_groups(sigma_x_DD, sigma_w_DD, transform.block_size)
    sigma_x_DD, sigma_w_DD = (each[index_D][:, index_D] for each in (sigma_x_DD, sigma_w_DD))
    # Blocks without a rotation of their own are nearly diagonal, so e4m3 is precise enough: E rises by 0.1 %.
    blocks = narrowed(cat_blocks(sigma_x_DD, sigma_w_DD, rotate=False, **fields), torch.float8_e4m3fn)
    return (Permutation(index_D=index_D), *blocks, Hadamard(order=hadamard_order(width)))


def _covariances(transform: Transform, evidence: _Evidence, scales_D: Tensor | None) -> tuple[Tensor, Tensor]:
    """Σx of the fit tokens and Σw of the weights, both after the diagonal."""
    x_TD = evidence.fit_tokens()
    w_OD = evidence.w_OD.to(x_TD.device).double()
    if scales_D is not None:
        x_TD, w_OD = x_TD / scales_D.to(x_TD), w_OD * scales_D.to(w_OD)
    if transform.massive_cap is not None:
        x_TD = capped_tokens(x_TD, transform.massive_cap)
    return covariance_of(x_TD), w_OD.mT @ w_OD


def _closed(build: Callable[..., _Online]) -> Callable[[Transform, _Evidence, Tensor | None], _Online]:
    def online(transform: Transform, evidence: _Evidence, scales_D: Tensor | None) -> _Online:
        # bfloat16, because e4m3 would turn a block's rotation away from massive tokens; WUSH lost up to 41 % of E there
        # (docs/decisions/0014).
        blocks = build(*_covariances(transform, evidence, scales_D), **_closed_form_fields(transform))
        return narrowed(blocks, torch.bfloat16)

    return online


_ONLINE: Final[dict[TransformKind, Callable[[Transform, _Evidence, Tensor | None], _Online]]] = {
    TransformKind.NONE: _nothing,
    TransformKind.SMOOTH: _nothing,
    TransformKind.ROTATION: _hadamard,
    TransformKind.SMOOTH_ROTATION: _hadamard,
    TransformKind.KRONECKER: _kronecker,
    TransformKind.KRONECKER_ROTATION: _kronecker,
    TransformKind.DUQUANT: _duquant,
    TransformKind.AFFINE: _affine,
    TransformKind.CAT: _closed(cat_blocks),
    TransformKind.WUSH: _closed(wush_blocks),
    TransformKind.SMOOTH_CAT: _smooth_cat,
}


def _closed_form_fields(transform: Transform) -> dict[str, Any]:
    return {"block_size": transform.block_size, "damping": transform.damping, "alpha": transform.alpha}


def _largest_block(width: int, limit: int) -> int:
    return max(size for size in range(1, limit + 1) if width % size == 0)
