"""Apply the online part of a site's transform, and a clip, in front of a quantized linear.

The in-memory model and the loaded checkpoint use the same functions. The primitives have their stored type: fp32 or,
for the blocks of a closed form, bfloat16 or e4m3. An activation of half precision is transformed in fp32, and rounded
once, after the last primitive.

Shapes: T tokens, I input channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from quant_engine.online.grid import ServedIntegers
from quant_engine.transforms.composition import apply_online_all
from quant_engine.transforms.primitives import Hadamard, Primitive

STORED_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64})
"""The types of a primitive's tensors in a checkpoint; int64 is for permutations."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineInput:
    """The operations on a linear's input before it is rounded: X P₁ ⋯ P_n, then a clip.

    Attributes:
        primitives: P₁ … P_n, in their stored dtype; linears that share an input share them.
        clip_ratio: values beyond this fraction of the token's absmax are clamped; 1 for none.
    """

    primitives: tuple[Primitive, ...] = ()
    clip_ratio: float = 1.0

    def __post_init__(self) -> None:
        # Rounded to the stored type here, so that the model in memory computes with the values of the checkpoint.
        object.__setattr__(self, "primitives", tuple(_as_stored(each) for each in self.primitives))

    @property
    def order(self) -> int | None:
        """The order of the Hadamard where it is the only primitive; else None."""
        alone = self.primitives[0] if len(self.primitives) == 1 else None
        return alone.order if isinstance(alone, Hadamard) else None

    @property
    def transforms(self) -> bool:
        """Whether there is a transform, and not only a clip."""
        return bool(self.primitives)

    @property
    def is_identity(self) -> bool:
        """Whether there is neither a transform nor a clip."""
        return not self.primitives and self.clip_ratio == 1.0

    def misfit(self, width: int) -> str | None:
        """Return why this can not act on ``width`` channels; None where it can."""
        for primitive in self.primitives:
            if isinstance(primitive, Hadamard) and width % primitive.order:
                return f"a Hadamard of order {primitive.order} does not fit the {width} inputs"
            if primitive.width not in (None, width):
                return f"a {primitive.name} transform of width {primitive.width} does not fit the {width} inputs"
        return None


def transformed_input(x_TI: Tensor, online: OnlineInput) -> Tensor:
    """Return the input [..., I] after ``online``, in its own dtype.

    Raises:
        ValueError: a primitive does not fit the width.
    """
    if online.transforms:
        wide_TI = x_TI.to(torch.promote_types(x_TI.dtype, torch.float32))
        x_TI = apply_online_all(online.primitives, wide_TI).to(x_TI.dtype)
    # After the transform: the clip belongs to the values that are rounded.
    if online.clip_ratio < 1.0:
        limit_T1 = x_TI.abs().amax(dim=-1, keepdim=True) * online.clip_ratio
        x_TI = torch.clamp(x_TI, min=-limit_T1, max=limit_T1)
    return x_TI


def served_input(x_TI: Tensor, online: OnlineInput, served: ServedIntegers | None) -> Tensor:
    """Return the input [..., I] after ``online``, rounded to integers as engines do, in its own dtype.

    With ``served`` the clip is part of the scale: larger values get the last code. With None it is that of
    :func:`transformed_input`, and nothing is rounded.

    Raises:
        ValueError: a primitive does not fit the width.
    """
    if served is None:
        return transformed_input(x_TI, online)
    moved_TI = transformed_input(x_TI, replace(online, clip_ratio=1.0) if online.clip_ratio < 1.0 else online)
    return served.rounded(moved_TI, online.clip_ratio)


def attach_online(linear: nn.Module, online: OnlineInput, served: ServedIntegers | None = None) -> None:
    """Let every forward of ``linear`` begin with :func:`served_input`."""
    if online.is_identity and served is None:
        return

    def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (served_input(arguments[0], online, served), *arguments[1:])

    linear.register_forward_pre_hook(before, prepend=True)


def on_device(primitives: Sequence[Primitive], device: torch.device | str) -> tuple[Primitive, ...]:
    """Return the same primitives with their tensors on ``device``."""
    return tuple(each.to(device) for each in primitives)


def _as_stored(primitive: Primitive) -> Primitive:
    """Return ``primitive`` with contiguous tensors of :data:`STORED_DTYPES`, as a checkpoint stores them."""
    # An unchanged primitive is returned itself, because linears that share it are recognized by its identity.
    changed = {
        name: tensor.detach().to(tensor.dtype if tensor.dtype in STORED_DTYPES else torch.float32).contiguous()
        for name, tensor in primitive.tensors().items()
        if tensor.dtype not in STORED_DTYPES or tensor.requires_grad
    }
    return replace(primitive, **changed) if changed else primitive
