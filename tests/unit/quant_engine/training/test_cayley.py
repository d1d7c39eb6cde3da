"""Cayley: the map against its definition, and descent that stays orthogonal and finds what it looks for."""

import pytest
import torch
from torch import Tensor

from quant_engine.training import CayleySGD
from quant_engine.training.cayley import cayley
from quant_engine.training.learned_matrices import LearnedMatrix, LearnedRotation


def random_orthogonal(size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    gauss = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gauss).Q.to(dtype)


def defect(matrix: Tensor) -> float:
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return float((matrix @ matrix.mT - eye).abs().max())


def test_the_cayley_map_is_orthogonal_and_undone_by_its_inverse() -> None:
    x = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skew = (x - x.mT) / 2
    q = cayley(x)
    assert defect(q) < 1e-12
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(2 * (q - eye) @ torch.linalg.inv(q + eye), skew)
    torch.testing.assert_close(cayley(torch.zeros_like(x)), eye.expand_as(x))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_stays_orthogonal_in_single_precision(momentum: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.stack([random_orthogonal(32, seed, torch.float32) for seed in (1, 2)]).requires_grad_()
    optimizer = CayleySGD([x], lr=1.5, momentum=momentum)
    for _ in range(100):
        x.grad = torch.randn(x.shape, generator=generator)
        optimizer.step()
    assert defect(x.detach()) < 1e-5


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_it_solves_a_procrustes_problem(momentum: float) -> None:
    """min ‖A X − B‖² over orthogonal X: the polar factor of AᵀB."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    b = a @ random_orthogonal(8, 3) + 0.1 * torch.randn(40, 8, generator=generator, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(a.mT @ b)
    start = random_orthogonal(8, 4)
    if torch.linalg.det(start) * torch.linalg.det(u @ vt) < 0:
        start[:, 0] *= -1  # no path of rotations leads to a reflection
    x = start.requires_grad_()
    optimizer = CayleySGD([x], lr=0.3, momentum=momentum)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (a @ x - b).square().mean() * 8
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), u @ vt, rtol=0, atol=1e-4)


def test_a_parameter_without_a_gradient_stays() -> None:
    x = random_orthogonal(4, 0).requires_grad_()
    before = x.detach().clone()
    CayleySGD([x], lr=1.0).step()
    assert torch.equal(x.detach(), before)


def test_a_matrix_starts_where_it_is_told_and_knows_its_inverse() -> None:
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(2, 6, 6, generator=generator) + 3 * torch.eye(6)
    matrix = LearnedMatrix(start)
    torch.testing.assert_close(matrix.matrix().detach(), start, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in matrix.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    moved = matrix.matrix().detach()
    assert (moved - start).abs().max() > 0.05
    identity = torch.eye(6).expand(2, 6, 6)
    torch.testing.assert_close(moved @ matrix.inverse_transpose().detach().mT, identity, rtol=0, atol=1e-4)


def test_a_learned_rotation_turns_its_start_and_is_its_own_inverse_transpose() -> None:
    start = torch.stack([random_orthogonal(6, seed) for seed in (1, 2)])
    rotation = LearnedRotation(start)
    torch.testing.assert_close(rotation.matrix().detach(), start.float(), rtol=0, atol=1e-6)
    with torch.no_grad():
        rotation.turn_KK += torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(3))
    moved = rotation.matrix().detach().double()
    assert (moved - start).abs().max() > 0.1
    torch.testing.assert_close(moved @ moved.mT, torch.eye(6).double().expand(2, 6, 6), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.inv(moved).mT, rotation.inverse_transpose().detach().double())
    rotation.matrix()[0, 0, 1].backward()  # type: ignore[no-untyped-call]  # torch annotates it nowhere
    assert bool(rotation.turn_KK.grad.abs().sum() > 0)


def test_a_gradual_matrix_is_freed_from_the_diagonal_outwards() -> None:
    matrix = LearnedMatrix(torch.eye(5), gradual=True)
    with torch.no_grad():
        matrix.delta_KK.fill_(0.5)
    for share, width in ((0.0, 0), (0.5, 2), (1.0, 4)):
        matrix.advance(share)
        changed = matrix.matrix().detach() != torch.eye(5)
        index = torch.arange(5)
        assert torch.equal(changed, (index[:, None] - index[None, :]).abs() <= width)


def test_a_singular_matrix_has_no_finite_inverse() -> None:
    assert not LearnedMatrix(torch.ones(3, 3)).inverse_transpose().isfinite().any()
