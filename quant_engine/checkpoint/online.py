"""What runs in front of a quantized linear: the online part of its site's transform, and a clip.

One definition serves the in-memory model and the loaded checkpoint: the primitives are kept as they are stored, in fp32
or, for the blocks of a closed form, bfloat16 or e4m3; an activation of half precision is transformed in fp32, and
rounded once, after the last primitive.

Shapes: T tokens, I input channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from quant_engine.transforms.composition import apply_online_all
from quant_engine.transforms.primitives import Hadamard, Primitive

STORED_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64})
"""What a checkpoint stores the tensors of its primitives in; int64 is a permutation's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineInput:
    """What happens to a linear's input before it is rounded: X P₁ ⋯ P_n, then a clip.

    Attributes:
        primitives: P₁ … P_n, in the dtype they are stored in; linears that share an input share them.
        clip_ratio: values beyond this fraction of the token's absmax are clamped; 1 for none.
    """

    primitives: tuple[Primitive, ...] = ()
    clip_ratio: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "primitives", tuple(_as_stored(each) for each in self.primitives))

    @property
    def order(self) -> int | None:
        """The order of the Hadamard, where that is all there is."""
        alone = self.primitives[0] if len(self.primitives) == 1 else None
        return alone.order if isinstance(alone, Hadamard) else None

    @property
    def transforms(self) -> bool:
        """Whether there is more than a clip."""
        return bool(self.primitives)

    @property
    def is_identity(self) -> bool:
        """Whether nothing has to be done."""
        return not self.primitives and self.clip_ratio == 1.0

    def misfit(self, width: int) -> str | None:
        """Why this can not act on ``width`` channels; None where it can."""
        for primitive in self.primitives:
            if isinstance(primitive, Hadamard) and width % primitive.order:
                return f"a Hadamard of order {primitive.order} does not fit the {width} inputs"
            if primitive.width not in (None, width):
                return f"a {primitive.name} transform of width {primitive.width} does not fit the {width} inputs"
        return None


def transformed_input(x_TI: Tensor, online: OnlineInput) -> Tensor:
    """The input that ``online`` makes of [..., I], in its dtype.

    Raises:
        ValueError: a primitive does not fit the width.
    """
    if online.transforms:
        wide_TI = x_TI.to(torch.promote_types(x_TI.dtype, torch.float32))
        x_TI = apply_online_all(online.primitives, wide_TI).to(x_TI.dtype)
    if online.clip_ratio < 1.0:
        limit_T1 = x_TI.abs().amax(dim=-1, keepdim=True) * online.clip_ratio
        x_TI = torch.clamp(x_TI, min=-limit_T1, max=limit_T1)
    return x_TI


def attach_online(linear: nn.Module, online: OnlineInput) -> None:
    """Transform, and clip, the input of ``linear`` before every forward."""
    if online.is_identity:
        return

    def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (transformed_input(arguments[0], online), *arguments[1:])

    linear.register_forward_pre_hook(before, prepend=True)


def on_device(primitives: Sequence[Primitive], device: torch.device | str) -> tuple[Primitive, ...]:
    """The same primitives with their tensors on ``device``."""
    return tuple(each.to(device) for each in primitives)


def _as_stored(primitive: Primitive) -> Primitive:
    """``primitive`` itself where its tensors are what a checkpoint stores: contiguous, of :data:`STORED_DTYPES`."""
    changed = {
        name: tensor.detach().to(tensor.dtype if tensor.dtype in STORED_DTYPES else torch.float32).contiguous()
        for name, tensor in primitive.tensors().items()
        if tensor.dtype not in STORED_DTYPES or tensor.requires_grad
    }
    return replace(primitive, **changed) if changed else primitive
