"""DuQuant's permutation and rotations against their definitions: levelled blocks, lower peaks, the same output."""

import pytest
import torch

from quant_engine.errors import UnsupportedPolicy
from quant_engine.transforms import (
    Block,
    Permutation,
    apply_all,
    correlated_groups,
    duquant,
    zigzag_permutation,
)
from tests.unit.quant_engine.definitions import dense_matrix, inverse_transpose_all, is_orthogonal, matrix_of
from tests.unit.quant_engine.outliers import massive_input, weight


def peaks(width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)).mul(1.5).exp()


def dealt(peak_D: torch.Tensor, block_size: int) -> list[int]:
    """The definition, a card at a time: to blocks 0, 1, …, N−1, N−1, …, 1, 0, 0, 1, …"""
    blocks: list[list[int]] = [[] for _ in range(len(peak_D) // block_size)]
    there_and_back = [*range(len(blocks)), *reversed(range(len(blocks)))]
    for rank, channel in enumerate(sorted(range(len(peak_D)), key=lambda j: (-float(peak_D[j]), j))):
        blocks[there_and_back[rank % len(there_and_back)]].append(channel)
    return [channel for block in blocks for channel in block]


@pytest.mark.parametrize(("width", "size"), [(96, 16), (96, 12), (30, 5), (64, 64), (8, 1), (576, 64)])
def test_channels_are_dealt_back_and_forth(width: int, size: int) -> None:
    peak_D = peaks(width)
    assert zigzag_permutation(peak_D, size).tolist() == dealt(peak_D, size)


def test_equal_peaks_keep_their_order() -> None:
    assert zigzag_permutation(torch.ones(8), 2).tolist() == dealt(torch.ones(8), 2)


def spread_of_means(peak_D: torch.Tensor, size: int) -> float:
    means = peak_D.reshape(-1, size).mean(dim=1)
    return float(means.max() - means.min())


@pytest.mark.parametrize("seed", range(5))
def test_the_blocks_means_are_levelled(seed: int) -> None:
    """Two blocks' rounds alternate in favor and never overlap, so their sums differ by less than the largest peak."""
    heavy_D = peaks(576, seed)
    assert spread_of_means(heavy_D[zigzag_permutation(heavy_D, 64)], 64) <= float(heavy_D.max() - heavy_D.min()) / 64
    mild_D = heavy_D**0.25
    assert spread_of_means(mild_D[zigzag_permutation(mild_D, 64)], 64) < 0.2 * spread_of_means(mild_D, 64)


@pytest.mark.parametrize("size", [16, 12, 10, 3, 1, 60])
@pytest.mark.parametrize("measured", [True, False])
def test_duquant_is_orthogonal_and_changes_no_output(size: int, measured: bool) -> None:
    x_TI, w_OI = massive_input(64, 240, dtype=torch.float64), weight(8, 240, dtype=torch.float64)
    transform = duquant(x_TI.abs().amax(dim=0), block_size=size, steps=4, x_TI=x_TI if measured else None)
    assert [type(primitive) for primitive in transform] == [Block, Permutation, Block]
    assert all(is_orthogonal(matrix_of(primitive, 240)) for primitive in transform)
    p_II = dense_matrix(transform, 240)
    torch.testing.assert_close(p_II @ p_II.T, torch.eye(240, dtype=torch.float64), rtol=0, atol=2e-6)
    y_TO = x_TI @ w_OI.T
    transformed = apply_all(transform, x_TI) @ inverse_transpose_all(transform, w_OI).T
    assert float((transformed - y_TO).norm() / y_TO.norm()) < 1e-9


@pytest.mark.parametrize("size", [16, 12, 10])
def test_every_stage_lowers_the_peak(size: int) -> None:
    x_TI = massive_input(64, 240, dtype=torch.float64)
    first, permutation, second = duquant(x_TI.abs().amax(dim=0), block_size=size, steps=16, x_TI=x_TI)
    once_TI = first.apply(x_TI)
    twice_TI = apply_all([permutation, second], once_TI)
    assert float(once_TI.abs().max()) < 0.7 * float(x_TI.abs().max())
    assert float(twice_TI.abs().max()) < 0.7 * float(once_TI.abs().max())
    # Every block for itself: no rotation is kept that raises its block's peak.
    for before, after in ((x_TI, once_TI), (permutation.apply(once_TI), twice_TI)):
        raised = after.reshape(64, -1, size).abs().amax(dim=(0, 2)) / before.reshape(64, -1, size).abs().amax(
            dim=(0, 2)
        )
        assert float(raised.max()) < 1 + 1e-6


def test_the_permutation_deals_what_the_first_rotation_left() -> None:
    x_TI = massive_input(64, 96, dtype=torch.float64)
    first, permutation, _ = duquant(x_TI.abs().amax(dim=0), block_size=16, steps=4, x_TI=x_TI)
    assert permutation.tensors()["index_D"].tolist() == dealt(first.apply(x_TI).abs().amax(dim=0), 16)


@pytest.mark.parametrize("size", [16, 12])
def test_one_step_is_a_swap_a_spread_and_a_swap(size: int) -> None:
    """R e_d = E R̃ Q e_0 = E R̃ e_0 whatever Q is: the outlier's column holds ±1/√K alone."""
    peak_D = torch.ones(size)
    peak_D[5] = 1000.0
    first, *_ = duquant(peak_D, block_size=size, steps=1)
    r_KK = matrix_of(first, size)
    torch.testing.assert_close(r_KK[:, 5].abs(), torch.full((size,), size**-0.5, dtype=torch.float64))
    assert float((peak_D.double() @ r_KK).abs().max()) < 800.0


def test_more_steps_are_never_worse() -> None:
    x_TI = massive_input(64, 96, dtype=torch.float64)
    reached = []
    for steps in (0, 1, 4, 16):
        first, *_ = duquant(x_TI.abs().amax(dim=0), block_size=16, steps=steps, x_TI=x_TI)
        reached.append(float(first.apply(x_TI).abs().max()))
    assert reached == sorted(reached, reverse=True)
    assert reached[0] == float(x_TI.abs().max())


def test_short_tokens_do_not_change_the_rotation() -> None:
    """A rotation keeps norms, so a token that is shorter than the others' peaks never holds a peak itself."""
    x_TI = 5 + massive_input(64, 32, dtype=torch.float64).abs()
    peak_D = x_TI.abs().amax(dim=0)
    longer_TI = torch.cat([0.01 * torch.ones(400, 32, dtype=torch.float64), x_TI])
    alone, among = (duquant(peak_D, block_size=16, steps=8, x_TI=tokens) for tokens in (x_TI, longer_TI))
    assert torch.equal(dense_matrix(alone, 32), dense_matrix(among, 32))


def test_the_seed_decides() -> None:
    peak_D = peaks(96)
    rotations = [duquant(peak_D, block_size=16, steps=2, seed=seed)[0] for seed in (3, 3, 4)]
    one, again, other = (rotation.tensors()["blocks_NKK"] for rotation in rotations)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_misfits_are_named() -> None:
    with pytest.raises(UnsupportedPolicy, match=r"10\b.*96"):
        duquant(peaks(96), block_size=10)
    with pytest.raises(UnsupportedPolicy, match=r"7\b.*96"):
        zigzag_permutation(peaks(96), 7)
    with pytest.raises(ValueError, match="steps is -1"):
        duquant(peaks(96), block_size=16, steps=-1)
    with pytest.raises(ValueError, match="95"):
        duquant(peaks(96), block_size=16, x_TI=torch.ones(4, 95))


def test_correlated_channels_share_a_block() -> None:
    """Twelve channels in three families that are shuffled: each family comes out as a block."""
    generator = torch.Generator().manual_seed(0)
    family_D = torch.randperm(12, generator=generator) % 3
    common_TF = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    x_TD = common_TF[:, family_D] + 0.3 * torch.randn(500, 12, generator=generator, dtype=torch.float64)
    index_D = correlated_groups(x_TD.T @ x_TD, torch.eye(12, dtype=torch.float64), 4)
    assert sorted(index_D.tolist()) == list(range(12))
    assert all(len(set(block.tolist())) == 1 for block in family_D[index_D].reshape(3, 4))


def test_blocks_of_correlated_channels_must_divide() -> None:
    with pytest.raises(UnsupportedPolicy, match="5"):
        correlated_groups(torch.eye(12), torch.eye(12), 5)
