"""The activation grid of the exported checkpoint in a differentiable form.

compressed-tensors spreads a dynamic integer grid over its whole range, [−8, 7] at 4 bits, with the scale absmax / 7.5.
The layer errors of a report use the paper's absmax / 7 (docs/decisions/0005). The training uses the grid that runs.
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
    """Round each token with scale = clip_ratio · absmax / (2^(b−1) − ½), clamped codes and straight-through gradients.

    The exported modules first clamp the activation to clip_ratio · absmax. This gives the same codes, except for
    clipped negative values, which then lie on a tie. Neither clips a float grid: its scale is absmax / 448.

    Args:
        x_TI: any leading axes; the last one holds a token's channels.
        clip_ratio: replaces the policy's; a scalar tensor gets its gradient.
        peak: the peak that NVFP4's static scale is computed from, where it is known.
    """
    grid = grid_of(activations.format)
    if grid is None:
        return x_TI
    if not isinstance(grid, IntegerGrid):
        return fake_quantize_activation(x_TI, activations.model_copy(update={"clip_ratio": 1.0}), peak=peak)
    ratio = activations.clip_ratio if clip_ratio is None else clip_ratio
    # The grid divides absmax by 2^(b−1) − 1 (``largest``); the factor turns that into 2^(b−1) − ½.
    return fake_quantize_on_grid(x_TI, grid=grid, clip_ratio=ratio * (grid.largest / (grid.largest + 0.5)))
