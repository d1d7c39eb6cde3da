"""What runs in front of a linear, against dense products in fp64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quant_engine.checkpoint import OnlineInput, attach_online, transformed_input
from quant_engine.transforms.primitives import Block, Dense, Hadamard, Kronecker, Permutation, Primitive
from tests.unit.quant_engine.definitions import matrix_of

WIDTH = 48
_KINDS: dict[str, Callable[[], Primitive]] = {
    "hadamard": lambda: Hadamard(order=16),
    "block": lambda: Block(blocks_NKK=_random(6, 8, 8)),
    "kronecker": lambda: Kronecker(left_AA=_random(6, 6), right_BB=_random(8, 8)),
    "permutation": lambda: Permutation(index_D=torch.randperm(WIDTH, generator=torch.Generator().manual_seed(3))),
    "dense": lambda: Dense(matrix_DD=_random(WIDTH, WIDTH)),
}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _dense(primitives: tuple[Primitive, ...]) -> Tensor:
    product = torch.eye(WIDTH, dtype=torch.float64)
    for primitive in primitives:
        product = product @ matrix_of(primitive, WIDTH)
    return product


@pytest.mark.parametrize("kind", _KINDS)
def test_primitives_act_in_order_and_the_clip_comes_last(kind: str) -> None:
    primitives = (Dense(matrix_DD=_random(WIDTH, WIDTH, seed=5)), _KINDS[kind]())
    x_TI = _random(7, WIDTH, seed=1)
    exact_TI = x_TI.double() @ _dense(primitives)
    limit_T1 = 0.5 * exact_TI.abs().amax(dim=-1, keepdim=True)
    expected_TI = torch.maximum(torch.minimum(exact_TI, limit_T1), -limit_T1)
    found_TI = transformed_input(x_TI, OnlineInput(primitives=primitives, clip_ratio=0.5))
    torch.testing.assert_close(found_TI.double(), expected_TI, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", _KINDS)
def test_half_precision_is_rounded_once_after_the_last_primitive(kind: str, dtype: torch.dtype) -> None:
    primitives = (Dense(matrix_DD=_random(WIDTH, WIDTH, seed=5)), _KINDS[kind]())
    x_TI = _random(7, WIDTH, seed=1).to(dtype)
    exact_TI = x_TI.double() @ _dense(primitives)
    found_TI = transformed_input(x_TI, OnlineInput(primitives=primitives))
    assert found_TI.dtype == dtype
    # One rounding is half a unit in the last place; fp32 in between adds a little where a sum cancels.
    allowed_TI = 0.51 * torch.finfo(dtype).eps * exact_TI.abs() + 1e-5 * exact_TI.abs().max()
    assert bool(((found_TI.double() - exact_TI).abs() <= allowed_TI).all())


def test_primitives_are_kept_as_a_checkpoint_stores_them() -> None:
    shared = Permutation(index_D=torch.arange(WIDTH))
    online = OnlineInput(primitives=(Dense(matrix_DD=_random(WIDTH, WIDTH).double()), shared))
    assert online.primitives[0].tensors()["matrix_DD"].dtype == torch.float32
    assert online.primitives[1] is shared


def test_a_linear_computes_behind_what_is_attached_and_is_left_alone_by_an_identity() -> None:
    linear = nn.Linear(WIDTH, 5).requires_grad_(False)
    x_TI = _random(3, WIDTH)
    plain = linear(x_TI)
    attach_online(linear, OnlineInput())
    assert torch.equal(linear(x_TI), plain)
    assert not linear._forward_pre_hooks
    online = OnlineInput(primitives=(_KINDS["kronecker"](),), clip_ratio=0.7)
    attach_online(linear, online)
    expected = nn.functional.linear(transformed_input(x_TI, online), linear.weight, linear.bias)
    assert torch.equal(linear(x_TI), expected)


@pytest.mark.parametrize(
    ("primitive", "message"),
    [
        (Hadamard(order=32), "a Hadamard of order 32 does not fit the 48 inputs"),
        (Dense(matrix_DD=torch.eye(32)), "a dense transform of width 32 does not fit the 48 inputs"),
        (Hadamard(order=16), None),
        (Dense(matrix_DD=torch.eye(WIDTH)), None),
    ],
)
def test_a_misfit_is_named(primitive: Primitive, message: str | None) -> None:
    assert OnlineInput(primitives=(primitive,)).misfit(WIDTH) == message


def test_only_a_lone_hadamard_has_an_order() -> None:
    assert OnlineInput(primitives=(Hadamard(order=16),)).order == 16
    assert OnlineInput(primitives=(Hadamard(order=16), Hadamard(order=8))).order is None
    assert OnlineInput(clip_ratio=0.5).order is None
