"""Round the inputs of linears, with gradients: the grids on which engines run a checkpoint.

Shapes: T tokens, I channels.
"""

import torch
from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids.formats import grid_of
from quant_engine.grids.quantize import nearest_divisors, own_groups
from quant_engine.grids.straight_through import fake_quantize_on_grid
from quant_engine.online.grid import rounded_asymmetric_token
from quant_engine.policy import ActivationQuantization


def fake_quantize_activation(
    x_TI: Tensor, spec: ActivationQuantization, *, clip_ratio: float | Tensor | None = None, peak: float | None = None
) -> Tensor:
    """Round each token dynamically with scale = clip_ratio · absmax / q_max and straight-through gradients.

    This is the grid on which engines run the checkpoint (:mod:`quant_engine.online.grid`), in a differentiable form.
    ``x_TI`` may have any number of leading axes; the last one has a token's channels. With format ``none`` the result
    is ``x_TI``. Floating-point formats clip nothing. Every group of a token has a scale in fp4, and in integers where
    the policy gives them groups. An asymmetric grid has the token's smallest and largest value as its ends.

    Args:
        clip_ratio: replaces the policy's ratio; a scalar tensor, or one for each token [T, 1], gets a gradient.
        peak: the absolute value for NVFP4's static scale; None for the largest in ``x_TI``.

    Raises:
        UnsupportedPolicy: the format's groups do not divide the channels.
    """
    grid = grid_of(spec.format)
    if grid is None:
        return x_TI
    if spec.format.group_size is not None:
        groups = own_groups(x_TI, spec.format, "activations")  # [..., I] → [..., I / size, size]
        fitted = grid.fitted(x_TI, None if peak is None else torch.tensor(peak, device=x_TI.device))
        return fake_quantize_on_grid(groups, grid=fitted).reshape(x_TI.shape)
    if spec.format.is_float:
        return fake_quantize_on_grid(x_TI, grid=grid)
    if not spec.symmetric:
        rounded_TI = rounded_asymmetric_token(x_TI.detach(), grid.bits)
        # At eight bits nothing is learned from the gradient of the scale, so only that of the values is kept.
        return x_TI + (rounded_TI - x_TI).detach() if x_TI.requires_grad else rounded_TI
    if spec.group_size is not None:
        return fake_quantize_on_grid(_input_groups(x_TI, spec.group_size), grid=grid).reshape(x_TI.shape)
    return fake_quantize_on_grid(x_TI, grid=grid, clip_ratio=spec.clip_ratio if clip_ratio is None else clip_ratio)


def _input_groups(x_TI: Tensor, size: int) -> Tensor:
    """Reshape [..., I] to [..., I / size, size]."""
    width = x_TI.shape[-1]
    if width % size:
        raise UnsupportedPolicy(
            detail=f"activations.group_size is {size}, which does not divide a layer's {width} input channels.",
            hint=f"Use {nearest_divisors(width, size)}, the nearest divisors of {width}, or granularity 'token'.",
        )
    return x_TI.reshape(*x_TI.shape[:-1], width // size, size)
