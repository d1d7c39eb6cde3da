"""Closed-form blocks stored in fewer bytes: invertible as stored, near what they were, whatever their magnitude."""

import pytest
import torch

from quant_engine.policy import Transform, TransformKind
from quant_engine.transforms import Block, Dense, Hadamard, apply_all, build_plan
from quant_engine.transforms.low_precision import narrowed
from quant_engine.transforms.statistics import ChannelStatistics
from tests.unit.quant_engine.definitions import inverse_transpose_all
from tests.unit.quant_engine.outliers import massive_input, weight

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
each_dtype = pytest.mark.parametrize(("dtype", "within"), [(E4M3, 2**-4), (BF16, 2**-8)])


def blocks(scale: float = 1.0) -> Block:
    drawn = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))
    return Block(blocks_NKK=scale * (4 * torch.eye(16) + drawn))


def only(primitives: tuple[object, ...]) -> Block:
    (block,) = (each for each in primitives if isinstance(each, Block))
    return block


@each_dtype
def test_a_narrowed_block_is_inverted_as_it_is_stored(dtype: torch.dtype, within: float) -> None:
    stored = narrowed((blocks(),), dtype)
    assert only(stored).blocks_NKK.dtype is dtype
    x_TI, w_OI = torch.randn(8, 64, dtype=torch.float64), torch.randn(5, 64, dtype=torch.float64)
    moved = apply_all(stored, x_TI) @ inverse_transpose_all(stored, w_OI).T
    torch.testing.assert_close(moved, x_TI @ w_OI.T, rtol=1e-9, atol=1e-9)
    off = (only(stored).blocks_NKK.float() - blocks().blocks_NKK).norm() / blocks().blocks_NKK.norm()
    assert 0 < off < within


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_a_block_beyond_the_range_of_e4m3_keeps_its_shape(scale: float) -> None:
    stored = only(narrowed((blocks(scale),), E4M3)).blocks_NKK.double()
    assert stored.isfinite().all()
    factor = stored.norm() / blocks(scale).blocks_NKK.double().norm()
    torch.testing.assert_close(torch.log2(factor), torch.log2(factor).round(), atol=0.01, rtol=0)
    off = stored / 2 ** torch.log2(factor).round() - blocks(scale).blocks_NKK.double()
    assert off.norm() < 2**-4 * blocks(scale).blocks_NKK.double().norm()


def test_other_primitives_and_unusable_blocks_are_left_alone() -> None:
    others = (Hadamard(order=16), Dense(matrix_DD=torch.eye(4)))
    assert narrowed(others, E4M3) == others
    broken = Block(blocks_NKK=torch.full((1, 2, 2), float("nan")))
    assert only(narrowed((broken,), E4M3)).blocks_NKK.isnan().all()


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TransformKind.SMOOTH_CAT, E4M3), (TransformKind.CAT, BF16), (TransformKind.WUSH, BF16)]
)
def test_what_a_policy_builds_is_narrow(kind: TransformKind, dtype: torch.dtype) -> None:
    x_TD, w_OD = massive_input(128, 64, massive=30.0), weight(32, 64)
    stats = ChannelStatistics(
        absmax_D=x_TD.abs().amax(dim=0), l2_D=x_TD.norm(dim=0), quantiles={}, norms={}, tokens=x_TD.shape[0]
    )
    plan = build_plan(Transform(kind=kind, block_size=16), stats, w_OD, tokens=lambda: x_TD)
    assert only(plan.online).blocks_NKK.dtype is dtype
