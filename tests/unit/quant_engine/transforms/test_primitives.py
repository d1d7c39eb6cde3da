"""Primitives and compositions act as the dense matrices that define them, and come back from files bit for bit."""

import json
from collections.abc import Sequence

import pytest
import torch

from quant_engine.errors import NumericalInstability
from quant_engine.hadamard import hadamard_backend, hadamard_matrix
from quant_engine.transforms import (
    PRIMITIVES,
    Block,
    Dense,
    Hadamard,
    Kronecker,
    Permutation,
    Primitive,
    apply_all,
    apply_online_all,
    kronecker_hadamard,
    kronecker_sizes,
    online_cost,
    primitive_from,
)
from tests.unit.quant_engine.definitions import dense_matrix, inverse_transpose_all, is_orthogonal, matrix_of
from tests.unit.quant_engine.outliers import massive_input, weight

WIDTH = 96


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(width: int, seed: int = 0) -> torch.Tensor:
    return normal(width, seed=seed).exp()


SCALES = positive(WIDTH)
BLOCKS = normal(6, 16, 16, seed=1)
LEFT, RIGHT = normal(8, 8, seed=2), normal(12, 12, seed=3)
INDEX = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(4))
MATRIX = normal(WIDTH, WIDTH, seed=5)

# A primitive, the P that defines it, its multiply-adds a token, whether P Pᵀ = I.
CASES: dict[str, tuple[Primitive, torch.Tensor, int, bool]] = {
    "hadamard": (Hadamard(order=96), hadamard_matrix(96).T, 96 * (12 + 3), True),
    "hadamard-32": (Hadamard(order=32), torch.block_diag(*[hadamard_matrix(32).T] * 3), 96 * 5, True),
    "block": (Block(blocks_NKK=BLOCKS), torch.block_diag(*BLOCKS), 96 * 16, False),
    "kronecker": (Kronecker(left_AA=LEFT, right_BB=RIGHT), torch.kron(LEFT, RIGHT), 96 * (8 + 12), False),
    "permutation": (Permutation(index_D=INDEX), torch.eye(WIDTH, dtype=torch.float64)[:, INDEX], 0, True),
    "dense": (Dense(matrix_DD=MATRIX), MATRIX, 96 * 96, False),
}
each_case = pytest.mark.parametrize("case", list(CASES))


def test_every_primitive_is_tested() -> None:
    assert {primitive.name for primitive, *_ in CASES.values()} == set(PRIMITIVES)


@each_case
def test_acts_as_its_dense_matrix(case: str) -> None:
    primitive, p_II, cost, orthogonal = CASES[case]
    x_TI, w_OI = massive_input(32, WIDTH, dtype=torch.float64), weight(12, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(primitive.apply(x_TI), x_TI @ p_II)
    torch.testing.assert_close(primitive.apply_online(x_TI), x_TI @ p_II)
    torch.testing.assert_close(primitive.apply_inverse_transpose(w_OI), w_OI @ torch.linalg.inv(p_II).T)
    torch.testing.assert_close(matrix_of(primitive, WIDTH), p_II)
    assert primitive.cost(WIDTH) == cost
    assert is_orthogonal(matrix_of(primitive, WIDTH)) is orthogonal


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_dtype_and_the_leading_axes(case: str, dtype: torch.dtype) -> None:
    primitive, p_II, *_ = CASES[case]
    x = normal(2, 5, WIDTH, seed=7).to(dtype)
    for acted, matrix_II in (
        (primitive.apply(x), p_II),
        (primitive.apply_online(x), p_II),
        (primitive.apply_inverse_transpose(x), torch.linalg.inv(p_II).T),
    ):
        assert acted.dtype is dtype
        assert acted.shape == x.shape
        expected = x.double() @ matrix_II
        close = 20 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(acted.double(), expected, rtol=0, atol=close)


def test_the_inverse_is_not_rounded_to_the_parameters_or_the_weights() -> None:
    """An ill-conditioned P in float32: its inverse in float32 would be wrong in the third digit."""
    ramp = torch.logspace(0, -5, WIDTH, dtype=torch.float64)
    p_II = (torch.linalg.qr(MATRIX)[0] * ramp @ torch.linalg.qr(MATRIX.T)[0]).float()
    w_OI = weight(12, WIDTH)
    expected = w_OI.double() @ torch.linalg.inv(p_II.double()).T
    acted = Dense(matrix_DD=p_II).apply_inverse_transpose(w_OI)
    assert float((acted - expected).norm() / expected.norm()) < 1e-7


@each_case
def test_gradients_reach_the_parameters(case: str) -> None:
    fields, tensors = CASES[case][0].fields(), CASES[case][0].tensors()
    trained = {key: value.clone().requires_grad_() for key, value in tensors.items() if value.is_floating_point()}
    x_TI = normal(4, WIDTH, seed=8).requires_grad_()
    acted = primitive_from(fields, tensors | trained).apply(x_TI)
    acted.square().sum().backward()
    assert x_TI.grad is not None
    assert all(value.grad is not None and float(value.grad.norm()) > 0 for value in trained.values())


@pytest.mark.parametrize("order", [32, 96])
def test_the_online_rotation_has_the_same_bits_whatever_the_backend(order: int) -> None:
    pytest.importorskip("fht_cpu")
    x_TI = massive_input(32, WIDTH)
    expected = apply_online_all([Hadamard(order=order)], x_TI)
    for backend in ("kronecker", "fht-cpu"):
        with hadamard_backend(backend):
            assert torch.equal(Hadamard(order=order).apply_online(x_TI), expected)


def test_rows_need_not_be_contiguous() -> None:
    """A transposed covariance is not, and a wheel's warning would be an error here."""
    x_IT = normal(64, 8, seed=9)
    torch.testing.assert_close(Hadamard(order=64).apply(x_IT.T), x_IT.T @ hadamard_matrix(64).T)


@each_case
def test_round_trip_keeps_the_bits(case: str) -> None:
    primitive = CASES[case][0]
    fields = json.loads(json.dumps(primitive.fields()))
    restored = primitive_from(fields, {key: tensor.clone() for key, tensor in primitive.tensors().items()})
    assert type(restored) is type(primitive)
    assert restored.fields() == primitive.fields()
    assert restored.tensors().keys() == primitive.tensors().keys()
    for key, tensor in primitive.tensors().items():
        assert restored.tensors()[key].dtype is tensor.dtype
        assert torch.equal(restored.tensors()[key], tensor)
    moved = restored.to("cpu")
    assert torch.equal(matrix_of(moved, WIDTH), matrix_of(primitive, WIDTH))


@pytest.mark.parametrize(
    ("fields", "tensors", "named"),
    [
        ({}, {}, "name"),
        ({"name": "spline"}, {}, "spline"),
        ({"name": "diagonal"}, {"scales_D": SCALES}, "diagonal"),
        ({"name": ["dense"]}, {}, "name"),
        ({"name": "hadamard"}, {}, "order"),
        ({"name": "hadamard", "order": "64"}, {}, "order"),
        ({"name": "hadamard", "order": True}, {}, "order"),
        ({"name": "hadamard", "order": 92}, {}, "order"),
        ({"name": "hadamard", "order": 0}, {}, "order"),
        ({"name": "hadamard", "order": 8, "depth": 3}, {}, "depth"),
        ({"name": "dense"}, {}, "matrix_DD"),
        ({"name": "dense", "matrix_DD": 3}, {"matrix_DD": MATRIX}, "matrix_DD"),
        ({"name": "dense"}, {"matrix_DD": 3}, "matrix_DD"),
        ({"name": "dense"}, {"matrix_DD": normal(3, 4)}, "matrix_DD"),
        ({"name": "dense"}, {"matrix_DD": normal(3, 3), "extra": SCALES}, "extra"),
        ({"name": "dense"}, {"matrix_DD": torch.eye(3, dtype=torch.int8)}, "matrix_DD"),
        ({"name": "block"}, {"blocks_NKK": normal(2, 3, 4)}, "blocks_NKK"),
        ({"name": "block"}, {"blocks_NKK": normal(3, 3)}, "blocks_NKK"),
        ({"name": "kronecker"}, {"left_AA": normal(2, 2)}, "right_BB"),
        ({"name": "kronecker"}, {"left_AA": normal(2, 2), "right_BB": normal(2)}, "right_BB"),
        ({"name": "permutation"}, {"index_D": torch.tensor([0, 2, 2])}, "index_D"),
        ({"name": "permutation"}, {"index_D": torch.tensor([1, 2, 3])}, "index_D"),
        ({"name": "permutation"}, {"index_D": torch.tensor([0.0, 1.0])}, "index_D"),
    ],
)
def test_malformed_input_names_the_field(
    fields: dict[str, object], tensors: dict[str, torch.Tensor], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        primitive_from(fields, tensors)


@pytest.mark.parametrize("width", [48, 144])
@each_case
def test_another_width_is_an_error(case: str, width: int) -> None:
    """Never a silent broadcast, a dropped channel, or tokens that run into each other."""
    primitive = CASES[case][0]
    for act in (primitive.apply, primitive.apply_online, primitive.apply_inverse_transpose):
        with pytest.raises(ValueError, match=str(width)):
            act(normal(6, width))


SINGULAR = torch.outer(SCALES, SCALES.flip(0))


@pytest.mark.parametrize(
    "primitive",
    [
        Dense(matrix_DD=torch.zeros(WIDTH, WIDTH)),
        Dense(matrix_DD=SINGULAR),  # of rank one: rounding alone makes it regular
        Dense(matrix_DD=MATRIX.index_fill(0, torch.tensor(3), float("nan"))),
        Block(blocks_NKK=BLOCKS * torch.tensor([1, 1, 0, 1, 1, 1]).reshape(-1, 1, 1)),
        Kronecker(left_AA=LEFT, right_BB=SINGULAR[:12, :12]),
        Kronecker(left_AA=LEFT * float("inf"), right_BB=RIGHT),
    ],
)
def test_what_can_not_be_inverted_is_refused(primitive: Primitive) -> None:
    with pytest.raises(NumericalInstability, match="inverted"):
        primitive.apply_inverse_transpose(weight(12, WIDTH, dtype=torch.float64))


# Compositions.


COMPOSITIONS: list[Sequence[str]] = [
    (),
    ("hadamard",),
    ("block", "permutation", "block"),
    ("hadamard-32", "kronecker"),
    ("permutation", "dense", "hadamard"),
]
each_composition = pytest.mark.parametrize("names", COMPOSITIONS, ids="+".join)


def composition(names: Sequence[str]) -> tuple[list[Primitive], torch.Tensor]:
    p_II = torch.eye(WIDTH, dtype=torch.float64)
    for name in names:
        p_II = p_II @ CASES[name][1]
    return [CASES[name][0] for name in names], p_II


@each_composition
def test_a_composition_is_the_product_of_its_matrices(names: Sequence[str]) -> None:
    primitives, p_II = composition(names)
    x_TI, w_OI = massive_input(32, WIDTH, dtype=torch.float64), weight(12, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(dense_matrix(primitives, WIDTH), p_II)
    torch.testing.assert_close(apply_all(primitives, x_TI), x_TI @ p_II)
    torch.testing.assert_close(apply_online_all(primitives, x_TI), x_TI @ p_II)
    inverse_II = torch.linalg.inv(p_II)
    torch.testing.assert_close(inverse_transpose_all(primitives, w_OI), w_OI @ inverse_II.T, rtol=1e-6, atol=1e-6)
    assert online_cost(primitives, WIDTH) == sum(CASES[name][2] for name in names)
    y_TO = x_TI @ w_OI.T
    transformed = apply_all(primitives, x_TI) @ inverse_transpose_all(primitives, w_OI).T
    assert float((transformed - y_TO).norm() / y_TO.norm()) < 1e-6


# Kronecker factors.


@pytest.mark.parametrize(
    ("width", "sizes"),
    [
        (576, (24, 24)), (1536, (32, 48)), (64, (8, 8)), (96, (8, 12)), (11008, (32, 344)), (8960, (80, 112)),
        (92, (4, 23)), (12, (3, 4)), (7, (1, 7)), (1, (1, 1)),
    ],
)  # fmt: skip
def test_factors_are_near_square_and_rotations_where_they_can_be(width: int, sizes: tuple[int, int]) -> None:
    assert kronecker_sizes(width) == sizes


def test_a_width_is_positive() -> None:
    with pytest.raises(ValueError, match="-4"):
        kronecker_sizes(-4)


@pytest.mark.parametrize("width", [64, 576, 92, 7])
def test_factors_start_as_rotations(width: int) -> None:
    start = kronecker_hadamard(width)
    p_II = matrix_of(start, width)
    torch.testing.assert_close(p_II @ p_II.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-6)
    assert is_orthogonal(p_II)
    assert torch.equal(kronecker_hadamard(width).right_BB, start.right_BB)
    assert start.left_AA.dtype is torch.float32


def test_factors_are_hadamards_or_else_drawn_by_the_seed() -> None:
    torch.testing.assert_close(
        matrix_of(kronecker_hadamard(96), 96), torch.kron(hadamard_matrix(8), hadamard_matrix(12))
    )
    assert not torch.equal(kronecker_hadamard(92, seed=1).right_BB, kronecker_hadamard(92).right_BB)
