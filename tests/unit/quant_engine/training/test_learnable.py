"""A learnable plan: what it computes is what its exported plan computes, against a dense definition in fp64."""

import dataclasses

import pytest
import torch
from torch import Tensor

from quant_engine.grids import fake_quantize_activation
from quant_engine.hadamard import hadamard_matrix
from quant_engine.online.grid import rounded_token
from quant_engine.policy import (
    ActivationQuantization,
    BlockTraining,
    NumberFormat,
    SiteQuantization,
    TransformKind,
    WeightQuantization,
)
from quant_engine.training import LearnablePlan
from quant_engine.training.learnable import plan_inputs, plan_weights
from quant_engine.transforms import SitePlan
from quant_engine.transforms.primitives import Block, Dense, Hadamard, Kronecker, Permutation, Primitive
from tests.unit.quant_engine.definitions import matrix_of
from tests.unit.quant_engine.outliers import massive_input, weight

D = 48
X = massive_input(64, D, massive=60.0)
LINEARS = (weight(20, D), weight(12, D, seed=2))
INT4 = SiteQuantization(weights=WeightQuantization(), activations=ActivationQuantization())
GENERATOR = torch.Generator().manual_seed(0)
SCALES = torch.rand(D, generator=GENERATOR) + 0.5
BLOCKS = torch.randn(4, 12, 12, generator=GENERATOR) * 0.1 + torch.eye(12)
ONLINE: dict[str, tuple[Primitive, ...]] = {
    "nothing": (),
    "hadamard": (Hadamard(order=12),),
    "kronecker": (Kronecker(left_AA=hadamard_matrix(4), right_BB=hadamard_matrix(12)),),
    "blocks": (
        Block(blocks_NKK=BLOCKS),
        Permutation(index_D=torch.randperm(D, generator=GENERATOR)),
        Block(blocks_NKK=BLOCKS.flip(0)),
    ),
    "dense": (Permutation(index_D=torch.arange(D).flip(0)), Dense(matrix_DD=torch.block_diag(*BLOCKS) + 0.01)),
}


def plan(online: str) -> SitePlan:
    return SitePlan(kind=TransformKind.AFFINE, label="l2", scales_D=SCALES, online=ONLINE[online])


def moved(learnable: LearnablePlan, amount: float = 0.03) -> LearnablePlan:
    """All its parameters somewhere else."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in learnable.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return learnable


def error(inputs: Tensor, weights: tuple[Tensor, ...]) -> float:
    return float(torch.cat([X @ w.T - inputs @ q.T for w, q in zip(LINEARS, weights, strict=True)], dim=1).norm())


def dense_error(plan: SitePlan, settings: SiteQuantization) -> float:
    """E in fp64 from dense matrices, integers and the clips, on the grid of engines."""
    matrix = torch.diag(1 / plan.scales_D.double()) if plan.scales_D is not None else torch.eye(D, dtype=torch.float64)
    for primitive in plan.online:
        matrix = matrix @ matrix_of(primitive, D)

    def grid(v: Tensor, bits: int, ratio: Tensor, steps: float) -> Tensor:
        scale = ratio * v.abs().amax(dim=-1, keepdim=True) / steps
        return (v / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale

    bits = settings.activations.format.bits or 0
    ratio = torch.tensor(plan.clip_ratio or 1.0, dtype=torch.float64)
    inputs = grid(X.double() @ matrix, bits, ratio, 2 ** (bits - 1) - 1)
    moved = torch.cat(LINEARS).double() @ torch.linalg.inv(matrix).mT
    clip = torch.ones(32, 1) if plan.weight_clip_OG is None else plan.weight_clip_OG
    size = settings.weights.group_size or D
    rows = grid(moved.reshape(-1, size), settings.weights.format.bits or 0, clip.double().reshape(-1, 1), 7)
    return float((X.double() @ torch.cat(LINEARS).double().T - inputs @ rows.reshape(32, D).T).norm())


@pytest.mark.parametrize("online", ONLINE)
@pytest.mark.parametrize("group_size", [None, 16])
def test_what_is_trained_is_what_is_exported(online: str, group_size: int | None) -> None:
    weights = WeightQuantization(granularity="group" if group_size else "channel", group_size=group_size)
    settings = dataclasses.replace(INT4, weights=weights)
    learnable = moved(LearnablePlan(plan(online), BlockTraining(), LINEARS, settings))
    with torch.no_grad():
        live = learnable.quantized()
        trained = error(live.rounder(X), tuple(live.weights))
    exported = learnable.plan()
    assert exported.label == "learned"
    assert exported.weight_clip_OG is not None
    assert exported.weight_clip_OG.shape == (32, D // group_size if group_size else 1)
    assert not any(tensor.requires_grad for each in exported.online for tensor in each.tensors().values())
    assert trained == pytest.approx(
        error(plan_inputs(X, exported, settings), plan_weights(LINEARS, exported, settings)), rel=1e-3
    )
    assert trained == pytest.approx(dense_error(exported, settings), rel=1e-3)


def test_it_starts_from_its_plan() -> None:
    learn = BlockTraining(learn=("scales", "transform"))
    learnable = LearnablePlan(plan("kronecker"), learn, LINEARS, INT4)
    exported = learnable.plan()
    torch.testing.assert_close(exported.scales_D, SCALES, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        matrix_of(exported.online[0], D), matrix_of(ONLINE["kronecker"][0], D), rtol=0, atol=1e-5
    )
    assert exported.clip_ratio is None
    assert exported.weight_clip_OG is None


@pytest.mark.parametrize(
    ("learn", "tied", "count"),
    [
        (("scales",), False, 1),
        (("scales",), True, 0),
        (("transform",), False, 2),
        (("weight_clip",), False, 1),
        (("activation_clip",), False, 1),
        (("scales", "transform", "weight_clip", "activation_clip"), True, 4),
    ],
)
def test_only_what_is_asked_for_is_learned(learn: tuple[str, ...], tied: bool, count: int) -> None:
    training = BlockTraining.model_validate({"learn": learn})
    learnable = moved(LearnablePlan(plan("kronecker"), training, LINEARS, INT4, tied=tied))
    assert len(learnable.transform_parameters()) + len(learnable.clip_parameters()) == count
    exported = learnable.plan()
    assert ("scales" in learn and not tied) == (not torch.equal(exported.scales_D, SCALES))
    left = exported.online[0].tensors()["left_AA"]
    assert ("transform" in learn) == (not torch.equal(left, hadamard_matrix(4)))
    assert ("weight_clip" in learn) == (exported.weight_clip_OG is not None)
    assert ("activation_clip" in learn) == (exported.clip_ratio is not None)


def test_unquantized_sites_and_per_tensor_scales_have_no_clips() -> None:
    none = ActivationQuantization(format=NumberFormat.NONE)
    settings = SiteQuantization(weights=WeightQuantization(granularity="tensor"), activations=none)
    learnable = LearnablePlan(plan("nothing"), BlockTraining(), LINEARS, settings)
    assert learnable.clip_parameters() == []
    assert torch.equal(fake_quantize_activation(X, none), X)


def test_gradients_reach_every_parameter() -> None:
    learnable = LearnablePlan(plan("blocks"), BlockTraining(), LINEARS, INT4)
    live = learnable.quantized()
    torch.cat([live.rounder(X) @ w_OI.T for w_OI in live.weights], dim=1).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learnable.parameters())


def test_a_live_site_rounds_on_the_grid_of_the_checkpoint() -> None:
    """Without a learned clip the training rounds to the very values of the exported linear."""
    settings = dataclasses.replace(INT4, activations=ActivationQuantization(clip_ratio=0.8))
    learnable = LearnablePlan(plan("nothing"), BlockTraining(learn=("transform",)), LINEARS, settings)
    assert torch.equal(learnable.quantized().rounder(X), rounded_token(X / SCALES, 4, 0.8))
