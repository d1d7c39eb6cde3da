"""DuQuant (arXiv 2406.01721): rotate outliers within blocks, distribute the channels evenly, and rotate again.

Shapes: T tokens, D channels, N blocks of K channels.
"""

import math
from typing import Final

import torch
from torch import Tensor

from quant_engine.hadamard import hadamard_cores, hadamard_matrix
from quant_engine.transforms.matrices import block_count, random_orthogonal
from quant_engine.transforms.primitives import Block, Permutation, Primitive

DUQUANT_STEPS: Final = 256
"""The greedy steps of a rotation in the paper."""

_LONGEST: Final = 256
"""A block's rotation is found on this many of its tokens, those with the largest norms. A rotation keeps the norm of a
token, so short tokens hardly ever hold the peak. All tokens would take eight times as long."""


def zigzag_permutation(peak_D: Tensor, block_size: int) -> Tensor:
    """Distribute the channels over the blocks in zigzag order of their peaks, so that the mean peaks are similar.

    Block 0 gets the largest, block N − 1 the N-th, block N − 1 again the next, and so on, in K rounds (DuQuant, 3.3).

    Args:
        peak_D: max_t abs X_tj per channel.
        block_size: K.

    Returns:
        ``index_D``, int64: position j takes channel ``index_D[j]``; equal peaks keep their order.

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide D.
    """
    blocks = block_count(peak_D.shape[0], block_size)
    deal_KN = peak_D.argsort(descending=True, stable=True).reshape(block_size, blocks).clone()
    deal_KN[1::2] = deal_KN[1::2].flip(-1)
    return deal_KN.mT.reshape(-1)  # [K, N] → [N, K] → [D]


def correlated_groups(sigma_x_DD: Tensor, sigma_w_DD: Tensor, block_size: int) -> Tensor:
    """Group the channels into blocks whose members correlate in the activations and in the weights (ours).

    A block-diagonal transform can use only correlations within a block. The method is greedy. A block begins with the
    channel that correlates most with all channels that are left. Then it takes the channel that correlates most with
    its members, until it is full. The affinity of two channels is the sum of their absolute correlations on both sides.

    Args:
        sigma_x_DD, sigma_w_DD: XᵀX and WᵀW, each up to a factor.
        block_size: K.

    Returns:
        ``index_D``, int64: position j takes channel ``index_D[j]``.

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide D.
    """
    width = sigma_x_DD.shape[-1]
    block_count(width, block_size)  # raises where the size does not divide the width
    affinity_DD = _correlations(sigma_x_DD) + _correlations(sigma_w_DD)
    affinity_DD.fill_diagonal_(0.0)
    taken_D = torch.zeros(width, dtype=torch.bool, device=affinity_DD.device)
    to_left_D, to_block_D = affinity_DD.sum(dim=0), torch.zeros_like(affinity_DD[0])
    order: list[Tensor] = []
    for place in range(width):
        begins = place % block_size == 0
        # Affinities are at least 0, so −1 excludes the channels that are taken.
        channel = (to_left_D if begins else to_block_D).masked_fill(taken_D, -1.0).argmax()
        taken_D[channel] = True
        to_left_D = to_left_D - affinity_DD[channel]
        to_block_D = affinity_DD[channel] if begins else to_block_D + affinity_DD[channel]
        order.append(channel)
    return torch.stack(order)


def _correlations(sigma_DD: Tensor) -> Tensor:
    """The absolute correlations; those of a channel without variance are 0."""
    scale_D = sigma_DD.diagonal().clamp(min=torch.finfo(sigma_DD.dtype).tiny).rsqrt()
    return (sigma_DD * scale_D[:, None] * scale_D).abs()


def duquant(
    peak_D: Tensor,
    *,
    block_size: int,
    steps: int = DUQUANT_STEPS,
    seed: int = 0,
    x_TI: Tensor | None = None,
) -> tuple[Primitive, ...]:
    """Build block rotation, zigzag permutation and block rotation, for activations that are already smoothed.

    A block's rotation is R = R₁ ⋯ R_n, R_i = E R̃ Q E: E swaps the channel with the largest abs(x) and the first one,
    R̃ is orthogonal with a uniform first row, Q = diag(1, Q') with a random rotation Q'; n is the step, of at most
    ``steps``, that leaves the smallest max abs(x) (DuQuant, 3.2 and equations 2 to 4).

    Our reading, where the paper is open: the rotation acts as X R. n = 0, no rotation, is a candidate, so that a peak
    never rises. R̃ is the Hadamard matrix of order K, or a reflection where there is none. All blocks share the draws
    of Q', and each has its own E and n. Peaks are those of each block's longest tokens.

    Args:
        peak_D: max_t abs X_tj after smoothing. Without ``x_TI`` it is used as the only token.
        block_size: K.
        steps: greedy steps per rotation, 256 in the paper.
        seed: the seed of Q'. Equal seeds give equal bits.
        x_TI: smoothed calibration tokens, on which the peaks are then measured.

    Returns:
        ``(Block, Permutation, Block)``, orthogonal, the blocks in float32, on the device of ``peak_D``.

    Raises:
        UnsupportedPolicy: ``block_size`` does not divide D.
        ValueError: ``steps`` is negative, or the width of ``x_TI`` is not D.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}, and can not be negative")
    if x_TI is not None and x_TI.shape[-1] != peak_D.shape[0]:
        raise ValueError(f"x_TI has {x_TI.shape[-1]} channels and peak_D {peak_D.shape[0]}")
    block_count(peak_D.shape[0], block_size)
    tokens_TI = (peak_D[None] if x_TI is None else x_TI).to(peak_D.device, torch.float64)
    generator = torch.Generator().manual_seed(seed)  # one for both rotations, so they use different draws
    first = _block_rotation(tokens_TI, block_size, steps, generator)
    rotated_TI = first.apply(tokens_TI)
    permutation = Permutation(index_D=zigzag_permutation(rotated_TI.abs().amax(dim=0), block_size))
    second = _block_rotation(permutation.apply(rotated_TI), block_size, steps, generator)
    return first, permutation, second


def _block_rotation(x_TI: Tensor, block_size: int, steps: int, generator: torch.Generator) -> Block:
    """Find the greedy rotation of every block, all blocks at once."""
    x_NTK = _longest(x_TI.reshape(x_TI.shape[0], -1, block_size).transpose(0, 1))  # [T, D] → [N, T, K]
    blocks = x_NTK.shape[0]
    spread_KK = _uniform_first_row(block_size)
    rotation_NKK = torch.eye(block_size, dtype=torch.float64, device=x_TI.device).repeat(blocks, 1, 1)
    best_NKK, best_N = rotation_NKK, x_NTK.abs().amax(dim=(1, 2))
    for _ in range(steps):
        step_KK = (spread_KK @ _first_channel_kept(block_size, generator)).to(x_TI.device)
        swap_NK = _swap_with_first(x_NTK.abs().amax(dim=1).argmax(dim=-1), block_size)
        x_NTK = _swapped(_swapped(x_NTK, swap_NK) @ step_KK, swap_NK)
        rotation_NKK = _swapped(_swapped(rotation_NKK, swap_NK) @ step_KK, swap_NK)
        # Each block takes its own best step, because a later step may raise its peak again.
        peak_N = x_NTK.abs().amax(dim=(1, 2))
        better_N = peak_N < best_N
        best_NKK = torch.where(better_N[:, None, None], rotation_NKK, best_NKK)
        best_N = torch.where(better_N, peak_N, best_N)
    return Block(blocks_NKK=best_NKK.float())


def _longest(x_NTK: Tensor) -> Tensor:
    """The tokens of each block with the largest norms, in order, and the one with the largest value."""
    count = min(_LONGEST, x_NTK.shape[1])
    longest_NT = torch.linalg.vector_norm(x_NTK, dim=-1).topk(count, dim=-1).indices
    # Without it the peak that the paper measures could be missed. A token that is taken twice changes no peak.
    peak_N1 = x_NTK.abs().amax(dim=-1).argmax(dim=-1, keepdim=True)
    index_NT = torch.cat([longest_NT, peak_N1], dim=-1)
    return x_NTK.gather(1, index_NT[..., None].expand(-1, -1, x_NTK.shape[-1]))


def _uniform_first_row(size: int) -> Tensor:
    """R̃ [K, K]: an orthogonal matrix whose first row has entries of magnitude 1/√K."""
    if hadamard_cores(size) is not None:
        return hadamard_matrix(size)
    # The Householder reflection that exchanges the first axis and the diagonal of the cube.
    axis_K = torch.full((size,), -1.0 / math.sqrt(size), dtype=torch.float64)
    axis_K[0] += 1.0
    identity_KK = torch.eye(size, dtype=torch.float64)
    return identity_KK - 2.0 * torch.outer(axis_K, axis_K) / axis_K.dot(axis_K)


def _first_channel_kept(size: int, generator: torch.Generator) -> Tensor:
    """Q = diag(1, Q') [K, K], which leaves the first channel unchanged."""
    q_KK = torch.eye(size, dtype=torch.float64)
    if size > 1:
        q_KK[1:, 1:] = random_orthogonal(size - 1, generator)
    return q_KK


def _swap_with_first(channel_N: Tensor, size: int) -> Tensor:
    """For each block, the channel order that exchanges ``channel_N`` and channel 0; it is its own inverse."""
    order_NK = torch.arange(size, device=channel_N.device).repeat(channel_N.shape[0], 1)
    order_NK.scatter_(1, channel_N[:, None], 0)
    order_NK[:, 0] = channel_N
    return order_NK


def _swapped(x_NTK: Tensor, order_NK: Tensor) -> Tensor:
    return x_NTK.gather(2, order_NK[:, None, :].expand_as(x_NTK))
