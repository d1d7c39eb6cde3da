"""The activation grid of the exported checkpoint, differentiable.

compressed-tensors spreads a dynamic integer grid over its whole range, [−8, 7] at 4 bits, and scales by absmax / 7.5;
the layer errors of a report use the paper's absmax / 7 (docs/decisions/0005). What runs is what has to be trained.
"""

from torch import Tensor

from quant_engine.grids import IntegerGrid, fake_quantize_activation, fake_quantize_on_grid, grid_of
from quant_engine.policy import ActivationQuantization


def fake_quantize_at_run_time(
    x_TI: Tensor,
    activations: ActivationQuantization,
    clip_ratio: float | Tensor | None = None,
    peak: float | None = None,
) -> Tensor:
    """Per-token rounding with scale = clip_ratio · absmax / (2^(b−1) − ½), codes clamped, straight-through gradients.

    Clamping the activation to clip_ratio · absmax first, as the exported modules do, gives the same codes but for
    clipped negative values, which then lie on a tie. A float grid is not clipped there, nor here: absmax / 448.

    Args:
        x_TI: any leading axes; the last holds a token's channels.
        clip_ratio: in place of the policy's; a scalar tensor gets its gradient.
        peak: that NVFP4's static scale is for, where it is known.
    """
    grid = grid_of(activations.format)
    if grid is None:
        return x_TI
    if not isinstance(grid, IntegerGrid):
        return fake_quantize_activation(x_TI, activations.model_copy(update={"clip_ratio": 1.0}), peak=peak)
    ratio = activations.clip_ratio if clip_ratio is None else clip_ratio
    return fake_quantize_on_grid(x_TI, grid=grid, clip_ratio=ratio * (grid.largest / (grid.largest + 0.5)))
