"""Every backend equals the dense product; rotation and inverse cancel; blocks do not mix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_engine.hadamard import BACKENDS, hadamard_backend, hadamard_matrix, hadamard_transform, online_hadamard

WIDTHS = [1, 2, 12, 64, 96, 576, 1040, 1536]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}

cpu_backends = pytest.mark.parametrize("backend", ["kronecker", "fht-cpu"])


def dense(x: torch.Tensor, order: int) -> torch.Tensor:
    """x H^T block by block in float64, written as a sum over the definition."""
    blocks = x.double().reshape(*x.shape[:-1], -1, order)
    return torch.einsum("...bj,ij->...bi", blocks, hadamard_matrix(order)).reshape(x.shape)


@pytest.fixture(autouse=True)
def _wheel_present() -> None:
    """The optional wheel is a development dependency, so its backend is always tested."""
    pytest.importorskip("fht_cpu")


@cpu_backends
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_equals_the_dense_product(backend: str, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, width, dtype=dtype, generator=torch.Generator().manual_seed(width))
    with hadamard_backend(backend):
        rotated = hadamard_transform(x, order=width)
    assert rotated.dtype is dtype
    torch.testing.assert_close(rotated.double(), dense(x, width), rtol=0, atol=TOLERANCE[dtype])


@cpu_backends
@pytest.mark.parametrize(("width", "order"), [(96, 12), (96, 32), (1536, 512), (6, 2), (20, 4), (7, 1)])
def test_blocks(backend: str, width: int, order: int) -> None:
    x = torch.randn(4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with hadamard_backend(backend):
        rotated = hadamard_transform(x, order=order)
        changed = hadamard_transform(torch.cat([x[:, :order] + 1.0, x[:, order:]], dim=1), order=order)
    torch.testing.assert_close(rotated, dense(x, order), rtol=0, atol=1e-12)
    assert torch.equal(rotated[:, order:], changed[:, order:])


@cpu_backends
@settings(deadline=None, max_examples=30)
@given(
    order=st.sampled_from([1, 2, 4, 12, 20, 24, 28, 36, 52, 128]),
    blocks=st.integers(1, 3),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_rotation_is_orthonormal_and_the_inverse_undoes_it(
    backend: str, order: int, blocks: int, rows: int, seed: int
) -> None:
    x = torch.randn(rows, order * blocks, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with hadamard_backend(backend):
        rotated = hadamard_transform(x, order=order)
        back = hadamard_transform(rotated, order=order, inverse=True)
    torch.testing.assert_close(rotated @ rotated.T, x @ x.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)


def test_one_massive_channel_is_spread_evenly() -> None:
    x = torch.zeros(1, 1536)
    x[0, 7] = 3157.0
    rotated = hadamard_transform(x, order=1536)
    torch.testing.assert_close(rotated.abs(), torch.full_like(rotated, 3157.0 / 1536**0.5))


def test_gradient_is_the_inverse_rotation() -> None:
    x = torch.randn(3, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(3, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hadamard_transform(x, order=48).backward(upstream)
    torch.testing.assert_close(x.grad, hadamard_transform(upstream, order=48, inverse=True))
    assert torch.autograd.gradcheck(lambda v: hadamard_transform(v, order=12), x[:, :24].detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = hadamard_transform(x.float(), order=96).to(dtype)
    assert torch.equal(hadamard_transform(x, order=96), expected)


def test_online_operation_is_fixed() -> None:
    """The same bits with and without gradients, under inference mode, and whichever backend is forced."""
    x = torch.randn(8, 1536, generator=torch.Generator().manual_seed(0))
    plain = online_hadamard(x, 1536)
    with hadamard_backend("fht-cpu"):
        assert torch.equal(online_hadamard(x, 1536), plain)
    with torch.inference_mode():
        assert torch.equal(online_hadamard(x, 1536), plain)
    assert torch.equal(online_hadamard(x.clone().requires_grad_(), 1536).detach(), plain)
    with hadamard_backend("kronecker"):
        assert torch.equal(hadamard_transform(x, order=1536), plain)


def test_factors_first_made_in_inference_mode_still_differentiate() -> None:
    with torch.inference_mode():
        online_hadamard(torch.ones(1, 228), 228)
    x = torch.ones(1, 228, requires_grad=True)
    online_hadamard(x, 228).sum().backward()
    assert x.grad is not None


def test_input_is_left_alone() -> None:
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with hadamard_backend("fht-cpu"):
        hadamard_transform(x, order=64)
    assert torch.equal(x, before)


def test_no_tokens() -> None:
    assert hadamard_transform(torch.empty(0, 96), order=96).shape == (0, 96)


def test_backends_refuse_what_they_can_not_do() -> None:
    x = torch.ones(2, 64, requires_grad=True)
    with hadamard_backend("fht-cpu"), pytest.raises(ValueError, match="fht-cpu"):
        hadamard_transform(x, order=64)
    with hadamard_backend("cuda"), pytest.raises(ValueError, match="cuda"):
        hadamard_transform(x, order=64)
    with pytest.raises(ValueError, match=r"any.*int64"):
        hadamard_transform(torch.ones(2, 64, dtype=torch.int64), order=64)
    with pytest.raises(ValueError, match=r"quantum.*kronecker"), hadamard_backend("quantum"):
        pass


@pytest.mark.parametrize(("width", "order"), [(96, 36), (96, 0), (92, 92)])
def test_impossible_orders(width: int, order: int) -> None:
    with pytest.raises(ValueError, match=str(order)):
        hadamard_transform(torch.ones(1, width), order=order)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "fht-cpu"])
@pytest.mark.parametrize("width", [96, 1536, 8192])
def test_on_a_gpu(backend: str, width: int) -> None:
    x = torch.randn(16, width, device="cuda")
    if not BACKENDS[backend].supports(x):
        pytest.skip(f"{backend} is not installed")
    with hadamard_backend(backend):
        rotated = hadamard_transform(x, order=width)
    with hadamard_backend("kronecker"):
        reference = hadamard_transform(x.cpu().double(), order=width)
    torch.testing.assert_close(rotated.cpu().double(), reference, rtol=0, atol=1e-5 * width**0.5)
