"""The constructed matrices are Hadamard matrices, and stay the ones that exported checkpoints were rotated by."""

import hashlib

import pytest
import scipy.linalg
import torch

from quant_engine.errors import UnsupportedPolicy
from quant_engine.hadamard import hadamard_cores, hadamard_matrix, hadamard_order
from quant_engine.online.galois import jacobsthal_matrix
from quant_engine.online.hadamard_cores import prime_power

ORDERS = [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 44, 52, 60, 76, 84, 96, 100, 108, 140, 144, 148, 180, 344, 576, 924, 1536]


@pytest.mark.parametrize("order", ORDERS)
def test_entries_are_signs_and_rows_are_orthogonal(order: int) -> None:
    signs = (hadamard_matrix(order) * order**0.5).round().to(torch.int64)
    assert signs.abs().eq(1).all()
    # Integers, so exactly: in float64 the products are whole numbers far below 2^53.
    assert torch.equal(signs.double() @ signs.double().T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [1, 2, 16, 256])
def test_powers_of_two_are_sylvesters(order: int) -> None:
    expected = torch.from_numpy(scipy.linalg.hadamard(order)).double() / order**0.5
    assert torch.equal(hadamard_matrix(order), expected)


def test_the_matrix_is_core_times_sylvester() -> None:
    small, large = hadamard_matrix(12), hadamard_matrix(48)
    for i in range(12):
        for j in range(12):
            block = large[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            torch.testing.assert_close(block, small[i, j] * hadamard_matrix(4))


@pytest.mark.parametrize(
    ("order", "digest"),
    [
        (12, "6e3ec5c5530c2de6"),
        (28, "fa7cafe3ba7f659d"),
        (52, "869bba5dd7657430"),
        (344, "3c215e69cbda7634"),
        (1536, "e8dc69671566f781"),
    ],
)
def test_the_matrices_never_change(order: int, digest: str) -> None:
    """The weights of every exported checkpoint are rotated by them: another valid matrix would be a wrong one."""
    signs = (hadamard_matrix(order) > 0).to(torch.uint8)
    assert hashlib.sha256(signs.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("width", "order"),
    [
        (576, 576), (1536, 1536), (8192, 8192), (14336, 14336), (8960, 8960), (11008, 11008), (18944, 18944),
        (5632, 5632), (4864, 4864), (29568, 29568),
        (172, 4), (92, 4), (13696, 128), (6, 2), (7, 1), (1, 1),
    ],
)  # fmt: skip
def test_order_is_the_width_or_its_power_of_two(width: int, order: int) -> None:
    assert hadamard_order(width) == order


def test_cores_are_paleys() -> None:
    assert hadamard_cores(1536) == (12,)
    assert hadamard_cores(8192) == ()
    assert hadamard_cores(11008) == (344,)  # 172 itself is of Williamson's kind
    assert hadamard_cores(92) is None
    assert hadamard_cores(0) is None


def test_two_cores_where_one_is_not_enough() -> None:
    assert hadamard_cores(1040) == (52, 20)  # 65·16, and no 65·2^j is Paley's up to 1040


def test_block_size_is_the_order() -> None:
    assert hadamard_order(1536, 512) == 512
    assert hadamard_order(1536, 12) == 12


@pytest.mark.parametrize("block", [1000, 1024, 6])
def test_a_bad_block_size_is_named(block: int) -> None:
    with pytest.raises(UnsupportedPolicy, match=str(block)):
        hadamard_order(1536, block)


@pytest.mark.parametrize("q", [3, 5, 7, 9, 25, 27, 49])
def test_quadratic_characters_of_a_field(q: int) -> None:
    """Each row has as many squares as non-squares, and Q Qᵀ = q I − J, which holds in a field and in no other ring."""
    matrix = jacobsthal_matrix(q).double()
    identity, ones = torch.eye(q, dtype=torch.float64), torch.ones(q, q, dtype=torch.float64)
    assert torch.equal(matrix @ matrix.T, q * identity - ones)
    assert torch.equal(matrix.sum(dim=1), torch.zeros(q, dtype=torch.float64))
    assert torch.equal(matrix, matrix.T if q % 4 == 1 else -matrix.T)


@pytest.mark.parametrize("q", [1, 2, 4, 6, 15])
def test_no_characters_without_an_odd_field(q: int) -> None:
    with pytest.raises(ValueError, match=str(q)):
        jacobsthal_matrix(q)


def test_prime_powers() -> None:
    assert [q for q in range(1, 33) if prime_power(q)] == [
        2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32,
    ]  # fmt: skip
    assert prime_power(343) == (7, 3)


def test_an_impossible_matrix_is_an_error() -> None:
    with pytest.raises(ValueError, match="92"):
        hadamard_matrix(92)
