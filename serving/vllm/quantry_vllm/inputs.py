"""What happens to the input of one (fused) linear: the online transform of the checkpoint.

The parameters have the names that the checkpoint gives them, below the linear that vLLM builds:
``qkv_proj.online.<position>.<field>``. So vLLM's own loader finds them.

Shapes: T tokens, I input channels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantry_vllm.online.section import HADAMARD, StoredInput, StoredPrimitive
from quantry_vllm.online.transforms import (
    hadamard_factors,
    permuted,
    times_blocks,
    times_hadamard,
    times_kronecker,
    times_matrix,
)

_LARGEST_HADACORE = 2**15
"""Largest order of vLLM's Hadamard kernel."""


class Refused(ValueError):
    """The checkpoint can not be served as it was measured."""


class _Stored(nn.Module):
    """A primitive whose tensors are in the checkpoint."""

    def __init__(self, stored: StoredPrimitive, shapes: Mapping[str, tuple[int, ...]], cut: Callable[..., Tensor]):
        super().__init__()
        self.apply_to = _APPLY[stored.name]
        self.fields = tuple(shapes)
        for field, shape in shapes.items():
            # Neither value can come from a checkpoint, so what was not loaded is found.
            empty = torch.full(shape, -1) if field == "index_D" else torch.full(shape, torch.nan)
            parameter = nn.Parameter(empty, requires_grad=False)
            parameter.weight_loader = cut  # type: ignore[attr-defined]  # vLLM's convention
            self.register_parameter(field, parameter)

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.apply_to(x_TI, *(getattr(self, field) for field in self.fields))

    def check(self, name: str) -> None:
        for field in self.fields:
            tensor = getattr(self, field)
            if not bool((tensor >= 0).all() if field == "index_D" else tensor.isfinite().all()):
                raise Refused(f"{name}.{field} is not in the checkpoint, or is not finite. Download it again.")


class _Hadamard(nn.Module):
    """A Hadamard, which is built from its order."""

    def __init__(self, order: int):
        super().__init__()
        self.order = order
        left, right = hadamard_factors(order)
        self.register_buffer("left", left.float(), persistent=False)
        self.register_buffer("right", right.float(), persistent=False)

    def forward(self, x_TI: Tensor) -> Tensor:
        return times_hadamard(x_TI, self.left, self.right)

    def check(self, name: str) -> None:
        del name


_APPLY: dict[str, Callable[..., Tensor]] = {
    "block": times_blocks,
    "kronecker": times_kronecker,
    "permutation": permuted,
    "dense": times_matrix,
}


class OnlineTransform(nn.Module):
    """X P₁ ⋯ P_n in fp32, rounded once to the type of the input.

    Args:
        name: of the linear, for errors.
        stored: what the checkpoint says of its input.
        width: the input channels of the whole linear.
        local: those of this rank.
        rank: of tensor parallelism.

    Raises:
        Refused: this rank has only a part of the input, and the transform can not be cut; or it does not fit the width.
    """

    def __init__(self, name: str, stored: StoredInput, *, width: int, local: int, rank: int):
        super().__init__()
        self.name = name
        for position, primitive in enumerate(stored.primitives):
            self.add_module(str(position), _module(name, primitive, width=width, local=local, rank=rank))
        alone = stored.primitives[0] if len(stored.primitives) == 1 else None
        order = int(alone.fields["order"]) if alone is not None and alone.name == HADAMARD else 0
        power = order > 0 and order & (order - 1) == 0
        self.hadacore = order if power and order <= _LARGEST_HADACORE else 0

    def forward(self, x_TI: Tensor) -> Tensor:
        # On a GPU vLLM has a kernel for these. It rotates in the type of the input.
        if self.hadacore and x_TI.is_cuda and x_TI.dtype in (torch.float16, torch.bfloat16):
            return _hadacore(x_TI, self.hadacore)
        wide_TI = x_TI.float()
        for primitive in self.children():
            wide_TI = primitive(wide_TI)
        return wide_TI.to(x_TI.dtype)

    def check(self) -> None:
        """Refuse a tensor that was not loaded. Raises: Refused."""
        for position, primitive in enumerate(self.children()):
            primitive.check(f"{self.name}.online.{position}")


def _hadacore(x_TI: Tensor, order: int) -> Tensor:
    from vllm import _custom_ops as ops  # noqa: PLC0415 -- its kernels load with it

    blocks = x_TI.reshape(*x_TI.shape[:-1], -1, order)
    return ops.hadacore_transform(blocks, inplace=False).reshape(x_TI.shape)


def _module(name: str, primitive: StoredPrimitive, *, width: int, local: int, rank: int) -> nn.Module:
    if primitive.name == HADAMARD:
        order = int(primitive.fields["order"])
        _refuse_unless(local % order == 0, name, primitive, local)
        return _Hadamard(order)
    if primitive.name not in _APPLY:
        raise Refused(f"{name} has a transform of kind {primitive.name!r}. Install a newer quantry-vllm.")
    shapes = dict(primitive.tensors)
    first, last = rank * local, (rank + 1) * local
    if primitive.name == "block":
        blocks, size, _ = shapes["blocks_NKK"]
        _refuse_unless(blocks * size == width and local % size == 0, name, primitive, local)
        shapes["blocks_NKK"] = (local // size, size, size)
        return _Stored(primitive, shapes, partial(_load, rows=slice(first // size, last // size)))
    # Any other transform mixes all channels, or moves them anywhere.
    _refuse_unless(local == width, name, primitive, local)
    return _Stored(primitive, shapes, partial(_load, rows=slice(None)))


def _load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None, *, rows: slice) -> None:
    """Copy this rank's part. vLLM names the linear of a merged one that the tensor is stored under: the first."""
    del shard
    part = loaded[rows]
    if parameter.shape != part.shape:
        raise Refused(f"a transform's tensor is {list(part.shape)}, and the config says {list(parameter.shape)}.")
    parameter.data.copy_(part)


def _refuse_unless(fits: bool, name: str, primitive: StoredPrimitive, local: int) -> None:
    if not fits:
        raise Refused(
            f"The {primitive.name} transform in front of {name} can not be cut to the {local} input channels of one "
            "rank. Serve with --tensor-parallel-size 1, or make the checkpoint with transforms in blocks."
        )
