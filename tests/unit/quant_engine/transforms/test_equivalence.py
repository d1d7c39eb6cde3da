"""Every transform leaves Y = X Wᵀ as it is, however massive the outliers; and is the one that the algebra names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_engine.hadamard import hadamard_matrix, hadamard_order
from quant_engine.policy import Statistic, Transform, TransformKind
from quant_engine.transforms import SitePlan, build_plan, transform_activation, transform_weight
from quant_engine.transforms.primitives import Hadamard
from tests.unit.quant_engine.definitions import channel_statistics, order_of
from tests.unit.quant_engine.outliers import massive_input, weight

STATISTICS = [
    Statistic(kind="absmax"),
    Statistic(kind="quantile", q=0.9),
    Statistic(kind="l2"),
    Statistic(kind="lp", p=3.0),
]


@pytest.mark.parametrize("width", [96, 576, 1536, 100, 92])
@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: f"{s.kind}{s.q}")
@pytest.mark.parametrize("kind", list(TransformKind))
def test_unquantized_output_is_unchanged(kind: TransformKind, statistic: Statistic, width: int) -> None:
    x_TI, w_OI = massive_input(64, width, dtype=torch.float64), weight(24, width, dtype=torch.float64)
    transform = Transform(kind=kind, statistic=statistic, alpha=0.6)
    plan = build_plan(transform, channel_statistics(x_TI, (0.9,), (3.0,)), w_OI, tokens=lambda: x_TI)
    y_TO = torch.einsum("ti,oi->to", x_TI, w_OI)
    transformed = torch.einsum("ti,oi->to", transform_activation(x_TI, plan), transform_weight(w_OI, plan))
    assert float((transformed - y_TO).norm() / y_TO.norm()) < 1e-6
    # The massive tokens must not hide the others.
    relative = (transformed - y_TO).norm(dim=1) / y_TO.norm(dim=1)
    assert float(relative.max()) < 1e-6


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from([TransformKind.SMOOTH, TransformKind.SMOOTH_ROTATION]),
    alpha=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
    width=st.sampled_from([12, 40, 96]),
)
def test_any_alpha_is_equivalent(kind: TransformKind, alpha: float, seed: int, width: int) -> None:
    x_TI = massive_input(32, width, seed=seed, dtype=torch.float64)
    w_OI = weight(8, width, seed=seed + 1, dtype=torch.float64)
    plan = build_plan(Transform(kind=kind, alpha=alpha), channel_statistics(x_TI), w_OI)
    y_TO = x_TI @ w_OI.T
    transformed = transform_activation(x_TI, plan) @ transform_weight(w_OI, plan).T
    assert float((transformed - y_TO).norm() / y_TO.norm()) < 1e-6


@pytest.mark.parametrize("block", [None, 32])
def test_smooth_rotation_scales_first_and_then_rotates(block: int | None) -> None:
    """A = Λ⁻¹ Hᵀ as dense matrices: X' = X A and W' = W A⁻ᵀ."""
    x_TI, w_OI = massive_input(32, 96, dtype=torch.float64), weight(8, 96, dtype=torch.float64)
    plan = build_plan(Transform(block_size=block), channel_statistics(x_TI), w_OI)
    assert plan.scales_D is not None
    order = hadamard_order(96, block)
    rotation = torch.block_diag(*[hadamard_matrix(order)] * (96 // order))
    a_II = torch.diag(1.0 / plan.scales_D.double()) @ rotation.T
    torch.testing.assert_close(transform_activation(x_TI, plan), x_TI @ a_II)
    torch.testing.assert_close(transform_weight(w_OI, plan), w_OI @ torch.linalg.inv(a_II).T)


def test_plans_say_what_they_are() -> None:
    x_TI, w_OI = massive_input(32, 96), weight(8, 96)
    stats = channel_statistics(x_TI)
    none = build_plan(Transform(kind=TransformKind.NONE), stats, w_OI)
    assert (none.scales_D, order_of(none), none.alpha, none.statistic, none.label) == (None, None, None, None, "none")
    rotation = build_plan(Transform(kind=TransformKind.ROTATION, block_size=32), stats, w_OI)
    assert (rotation.scales_D, order_of(rotation), rotation.label) == (None, 32, "none")
    smooth = build_plan(Transform(kind=TransformKind.SMOOTH, statistic=Statistic(kind="l2")), stats, w_OI)
    assert (order_of(smooth), smooth.alpha, smooth.label) == (None, 0.5, "l2")
    both = build_plan(Transform(), stats, w_OI)
    assert (order_of(both), both.alpha, both.statistic, both.label) == (96, 0.5, Statistic(), "absmax")
    learned = both.with_scales(torch.ones(96), "learned")
    assert (order_of(learned), learned.alpha, learned.label) == (96, 0.5, "learned")


def test_none_is_the_identity() -> None:
    x_TI = massive_input(4, 96)
    assert transform_activation(x_TI, SitePlan(kind=TransformKind.NONE)) is x_TI


def test_gradient_reaches_the_scales() -> None:
    x_TI, w_OI = massive_input(8, 96, dtype=torch.float64), weight(4, 96, dtype=torch.float64)
    scales_D = (torch.rand(96, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5).requires_grad_()
    plan = SitePlan(kind=TransformKind.SMOOTH_ROTATION, scales_D=scales_D, online=(Hadamard(order=96),))
    # ‖X Λ⁻¹‖² has the gradient −2 Σ_t x² / s³, whatever orthonormal matrix follows.
    transform_activation(x_TI, plan).square().sum().backward()
    torch.testing.assert_close(scales_D.grad, -2.0 * x_TI.square().sum(dim=0) / scales_D.detach() ** 3)
    scales_D.grad = None
    transform_weight(w_OI, plan).square().sum().backward()
    torch.testing.assert_close(scales_D.grad, 2.0 * scales_D.detach() * w_OI.square().sum(dim=0))
