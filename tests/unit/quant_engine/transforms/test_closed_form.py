"""CAT and WUSH against the matrix functions that define them, and against what any other transform reaches."""

from collections.abc import Callable
from typing import Any

import pytest
import scipy.linalg
import torch

from quant_engine.errors import NumericalInstability, UnsupportedPolicy
from quant_engine.hadamard import hadamard_matrix, hadamard_order
from quant_engine.transforms import (
    Block,
    Dense,
    Primitive,
    apply_all,
    capped_tokens,
    cat_blocks,
    covariance_of,
    wush_blocks,
)
from tests.unit.quant_engine.definitions import dense_matrix, inverse_transpose_all, matrix_of
from tests.unit.quant_engine.outliers import massive_input, weight

WIDTH = 48
DAMPING = 0.01
X_TI, W_OI = massive_input(256, WIDTH, massive=30.0, dtype=torch.float64), weight(80, WIDTH, dtype=torch.float64)
SIGMA_X, SIGMA_W = X_TI.T @ X_TI / 256, W_OI.T @ W_OI

Builder = Callable[..., tuple[Primitive, ...]]
both = pytest.mark.parametrize("build", [cat_blocks, wush_blocks])
each_size = pytest.mark.parametrize("block_size", [None, 48, 16, 12, 8])


def root(matrix: torch.Tensor) -> torch.Tensor:
    """The principal square root, by Schur's method."""
    return torch.from_numpy(scipy.linalg.sqrtm(matrix.numpy()).real)


def geometric_mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A # B = A^½ (A^-½ B A^-½)^½ A^½."""
    half = root(a)
    back = torch.linalg.inv(half)
    return half @ root(back @ b @ back) @ half


def damped(sigma_II: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Every diagonal block, 1 % of its mean variance added to its diagonal."""
    blocks = [sigma_II[i : i + size, i : i + size] for i in range(0, sigma_II.shape[0], size)]
    return [block + DAMPING * block.diagonal().mean() * torch.eye(size, dtype=torch.float64) for block in blocks]


def rotation(size: int) -> torch.Tensor:
    order = hadamard_order(size)
    return torch.block_diag(*[hadamard_matrix(order)] * (size // order))


def dense_blocks(primitives: tuple[Primitive, ...], size: int) -> list[torch.Tensor]:
    matrix_II = dense_matrix(primitives, WIDTH)
    blocks = [matrix_II[i : i + size, i : i + size] for i in range(0, WIDTH, size)]
    assert torch.equal(torch.block_diag(*blocks), matrix_II)
    return blocks


@each_size
def test_cat_is_the_root_of_the_geometric_mean(block_size: int | None) -> None:
    size = block_size or WIDTH
    blocks = dense_blocks(cat_blocks(SIGMA_X, SIGMA_W, block_size=block_size, damping=DAMPING), size)
    for a_KK, sx_KK, sw_KK in zip(blocks, damped(SIGMA_X, size), damped(SIGMA_W, size), strict=True):
        expected = root(geometric_mean(sw_KK, torch.linalg.inv(sx_KK))) @ rotation(size)
        assert float((a_KK - expected).norm() / expected.norm()) < 1e-6


@each_size
@pytest.mark.parametrize("rotate", [True, False])
def test_wush_is_cat_up_to_an_orthogonal_factor(block_size: int | None, rotate: bool) -> None:
    size = block_size or WIDTH
    wush = wush_blocks(SIGMA_X, SIGMA_W, block_size=block_size, rotate=rotate)
    cat = cat_blocks(SIGMA_X, SIGMA_W, block_size=block_size, rotate=rotate)
    for wush_KK, cat_KK in zip(dense_blocks(wush, size), dense_blocks(cat, size), strict=True):
        between_KK = torch.linalg.solve(cat_KK, wush_KK)
        torch.testing.assert_close(between_KK @ between_KK.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-4)


@both
@each_size
@pytest.mark.parametrize("rotate", [True, False])
def test_both_sides_get_the_same_covariance(build: Builder, block_size: int | None, rotate: bool) -> None:
    size = block_size or WIDTH
    blocks = dense_blocks(build(SIGMA_X, SIGMA_W, block_size=block_size, rotate=rotate), size)
    for a_KK, sx_KK, sw_KK in zip(blocks, damped(SIGMA_X, size), damped(SIGMA_W, size), strict=True):
        inverse_KK = torch.linalg.inv(a_KK)
        x_KK, w_KK = a_KK.T @ sx_KK @ a_KK, inverse_KK @ sw_KK @ inverse_KK.T
        assert float((x_KK - w_KK).norm() / x_KK.norm()) < 1e-5


@each_size
def test_wush_diagonalizes_and_its_rotation_levels(block_size: int | None) -> None:
    size = block_size or WIDTH
    plain = dense_blocks(wush_blocks(SIGMA_X, SIGMA_W, block_size=block_size, rotate=False), size)
    rotated = dense_blocks(wush_blocks(SIGMA_X, SIGMA_W, block_size=block_size), size)
    for plain_KK, rotated_KK, sx_KK in zip(plain, rotated, damped(SIGMA_X, size), strict=True):
        s_KK = plain_KK.T @ sx_KK @ plain_KK
        assert float((s_KK - s_KK.diagonal().diag()).norm() / s_KK.norm()) < 1e-5
        torch.testing.assert_close(rotated_KK, plain_KK @ rotation(size).T, rtol=1e-5, atol=1e-5)
        level_K = (rotated_KK.T @ sx_KK @ rotated_KK).diagonal()
        torch.testing.assert_close(level_K, level_K.mean().expand(size), rtol=1e-5, atol=0)


@both
def test_no_other_transform_has_a_smaller_product_of_energies(build: Builder) -> None:
    """tr(AᵀΣxA) · tr(A⁻¹ΣwA⁻ᵀ), to which the product of both sides' rounding errors is proportional."""
    (sx_II,), (sw_II,) = damped(SIGMA_X, WIDTH), damped(SIGMA_W, WIDTH)

    def energies(a_II: torch.Tensor) -> float:
        inverse_II = torch.linalg.inv(a_II)
        return float((a_II.T @ sx_II @ a_II).trace() * (inverse_II @ sw_II @ inverse_II.T).trace())

    ours = energies(dense_matrix(build(SIGMA_X, SIGMA_W, block_size=None), WIDTH))
    balanced_D = (sw_II.diagonal() / sx_II.diagonal()) ** 0.25
    generator = torch.Generator().manual_seed(0)
    nearby = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    others = [
        torch.eye(WIDTH, dtype=torch.float64),
        balanced_D.diag(),
        balanced_D.diag() @ hadamard_matrix(WIDTH).T,
        nearby,
        dense_matrix(build(SIGMA_X, SIGMA_W, block_size=16), WIDTH),
        dense_matrix(build(SIGMA_X, SIGMA_W, block_size=None), WIDTH) @ (0.01 * nearby).matrix_exp(),
    ]
    assert all(ours < energies(other) for other in others)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """4-bit symmetric round to nearest, one scale a row."""
    scale = x.abs().amax(dim=1, keepdim=True) / 7
    return (x / scale).round().clamp(-8, 7) * scale


@both
def test_rounding_errors_fall_and_outputs_do_not_change(build: Builder) -> None:
    primitives = build(SIGMA_X, SIGMA_W, block_size=16)
    x_TI, w_OI = apply_all(primitives, X_TI), inverse_transpose_all(primitives, W_OI)
    y_TO = X_TI @ W_OI.T
    assert float((x_TI @ w_OI.T - y_TO).norm() / y_TO.norm()) < 1e-9
    before = (rounded(X_TI) @ rounded(W_OI).T - y_TO).norm()
    assert float((rounded(x_TI) @ rounded(w_OI).T - y_TO).norm()) < 0.7 * float(before)


@both
def test_the_weights_get_the_inverse_of_the_float32_matrix_that_runs_online(build: Builder) -> None:
    (block,) = build(SIGMA_X, SIGMA_W, block_size=16)
    (dense,) = build(SIGMA_X, SIGMA_W, block_size=None)
    assert isinstance(block, Block)
    assert isinstance(dense, Dense)
    assert block.blocks_NKK.dtype is dense.matrix_DD.dtype is torch.float32


@both
def test_equal_inputs_give_equal_bits_and_blocks_do_not_mix(build: Builder) -> None:
    (first,) = build(SIGMA_X, SIGMA_W, block_size=16)
    (again,) = build(SIGMA_X.clone(), SIGMA_W.clone(), block_size=16)
    other_x = SIGMA_X.clone()
    other_x[:16, :16] *= 3.0
    (changed,) = build(other_x, SIGMA_W, block_size=16)
    assert torch.equal(first.tensors()["blocks_NKK"], again.tensors()["blocks_NKK"])
    assert torch.equal(first.tensors()["blocks_NKK"][1:], changed.tensors()["blocks_NKK"][1:])
    assert not torch.equal(first.tensors()["blocks_NKK"][0], changed.tensors()["blocks_NKK"][0])


@both
@pytest.mark.parametrize("block_size", [None, 16])
def test_few_outputs_and_dead_channels_stay_invertible(build: Builder, block_size: int | None) -> None:
    x_TI, w_OI = X_TI.clone(), W_OI[:5]
    x_TI[:, :16] = 0.0  # a whole block
    x_TI[:, 20] = 0.0
    primitives = build(covariance_of(x_TI), w_OI.T @ w_OI, block_size=block_size)
    y_TO = x_TI @ w_OI.T
    transformed = apply_all(primitives, x_TI) @ inverse_transpose_all(primitives, w_OI).T
    assert float((transformed - y_TO).norm() / y_TO.norm()) < 1e-6


@both
def test_a_block_size_that_does_not_divide_is_named(build: Builder) -> None:
    for size in (10, 96, 0):
        with pytest.raises(UnsupportedPolicy, match=rf"{size}\b.*48"):
            build(SIGMA_X, SIGMA_W, block_size=size)


@both
def test_covariances_of_two_widths_are_an_error(build: Builder) -> None:
    with pytest.raises(ValueError, match="16"):
        build(SIGMA_X, SIGMA_W[:16, :16], block_size=None)


@both
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigma_x_II": SIGMA_X * float("nan")}, "activations is not finite"),
        ({"sigma_w_II": SIGMA_W * float("inf")}, "weights is not finite"),
        ({"sigma_x_II": torch.zeros_like(SIGMA_X)}, "activations.*not positive definite"),
        ({"sigma_w_II": torch.zeros_like(SIGMA_W)}, "weights.*not positive definite"),
        ({"sigma_x_II": torch.ones_like(SIGMA_X), "damping": 0.0}, "activations, damped by 0.0"),
        ({"sigma_w_II": -SIGMA_W}, "weights.*not positive definite"),
    ],
)
def test_what_has_no_geometric_mean_is_refused(build: Builder, changes: dict[str, Any], named: str) -> None:
    arguments = {"sigma_x_II": SIGMA_X, "sigma_w_II": SIGMA_W, "block_size": 16} | changes
    with pytest.raises(NumericalInstability, match=named):
        build(arguments.pop("sigma_x_II"), arguments.pop("sigma_w_II"), **arguments)


# What Σx is made of.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_massive_tokens_are_capped_and_the_others_keep_their_bits(dtype: torch.dtype) -> None:
    x_TI = massive_input(64, WIDTH).to(dtype)
    norms = x_TI.double().norm(dim=1)
    capped = capped_tokens(x_TI, 4.0)
    limit = 4.0 * float(norms.median())
    above = norms > limit
    assert 0 < int(above.sum()) < 64
    assert capped.dtype is dtype
    assert torch.equal(capped[~above], x_TI[~above])
    # Half precision is rounded once: a factor rounded by itself would leave tokens above the cap.
    within = 0.0 if dtype is torch.bfloat16 else 4 * torch.finfo(dtype).eps
    expected = (x_TI.double() * (limit / norms)[:, None]).to(dtype)
    torch.testing.assert_close(capped[above], expected[above], rtol=within, atol=0)


def test_padding_is_no_token() -> None:
    x_TI = torch.cat([torch.zeros(100, 4), torch.ones(3, 4)])
    assert torch.equal(capped_tokens(x_TI, 2.0), x_TI)
    assert torch.equal(capped_tokens(x_TI[:100], 2.0), x_TI[:100])


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_a_cap_is_positive(ratio: float) -> None:
    with pytest.raises(ValueError, match=str(ratio)):
        capped_tokens(X_TI, ratio)


@pytest.mark.parametrize("tokens", [1, 100, 4096, 9000])
def test_covariance_is_the_mean_outer_product(tokens: int) -> None:
    x_TI = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(tokens))
    expected = torch.einsum("ti,tj->ij", x_TI.double(), x_TI.double()) / tokens
    torch.testing.assert_close(covariance_of(x_TI), expected, rtol=1e-12, atol=1e-12)


def test_no_tokens_have_no_covariance() -> None:
    with pytest.raises(ValueError, match="token"):
        covariance_of(torch.zeros(0, 4))


@pytest.mark.parametrize("build", [cat_blocks, wush_blocks])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_alpha_moves_the_difficulty(build: Callable[..., tuple[Primitive, ...]], alpha: float) -> None:
    """A Aᵀ = Σx^-½ (Σx^½ Σw Σx^½)^(1−α) Σx^-½: the geometric mean of Σx⁻¹ and Σw with weight 1 − α on Σw."""
    generator = torch.Generator().manual_seed(3)
    x_TI, w_OI = (torch.randn(200, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma_x, sigma_w = covariance_of(x_TI * torch.linspace(0.2, 3.0, 16)), covariance_of(w_OI)
    (primitive,) = build(sigma_x, sigma_w, block_size=None, damping=1e-12, alpha=alpha)
    a_II = matrix_of(primitive, 16)

    def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.pow(exponent)) @ vectors.T

    root, inverse = power(sigma_x, 0.5), power(sigma_x, -0.5)
    expected = inverse @ power(root @ sigma_w @ root, 1.0 - alpha) @ inverse
    torch.testing.assert_close(a_II @ a_II.T, expected, rtol=1e-4, atol=1e-5)
