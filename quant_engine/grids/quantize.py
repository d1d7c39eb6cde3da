"""Weights and activations on symmetric grids, as a policy's frozen specifications ask for.

Shapes: O output channels, I input channels, T tokens, G groups of an output channel, R rows that share a scale each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids.clip import mse_clip_ratio
from quant_engine.grids.formats import Grid, grid_of
from quant_engine.grids.straight_through import fake_quantize_on_grid, row_codes, row_scales
from quant_engine.policy import ActivationQuantization, WeightQuantization

_SMALLEST_GROUP: Final = 8
"""Of the groups that a hint proposes; the policy allows none smaller."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A weight matrix on its grid.

    Attributes:
        codes: [O, I], int8 in [−2^(bits−1), 2^(bits−1) − 1], or float8_e4m3fn for ``fp8``.
        scale: [O, 1] per channel, [O, G] per group of I / G consecutive input channels, [1, 1] per tensor; in the
            dtype of the weight that was quantized.
        bits: width of a code.
    """

    codes: Tensor
    scale: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        """codes × scale [O, I], in the dtype of ``scale``."""
        rows, columns = self.codes.shape
        grouped = self.codes.to(self.scale.dtype).reshape(self.scale.shape[0], self.scale.shape[1], -1)
        return (grouped * self.scale.unsqueeze(-1)).reshape(rows, columns)


def quantize_weight(
    w_OI: Tensor,
    spec: WeightQuantization,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
) -> Quantized:
    """Round to nearest with the scales of :func:`weight_scale`; a row of zeros has scale 1 and codes 0.

    Raises:
        UnsupportedPolicy: the format is ``none``, or ``group_size`` does not divide I.
    """
    scale = weight_scale(w_OI, spec, importance_I=importance_I, clip_ratio_R1=clip_ratio_R1)
    return codes_on_scale(w_OI, spec, scale)


def weight_scale(
    w_OI: Tensor,
    spec: WeightQuantization,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
) -> Tensor:
    """ρ · absmax / q_max: [O, 1] per channel, [O, G] per group or [1, 1] per tensor; 1 for zeros.

    Args:
        importance_I: d ≥ 0 [I], the weight of each column's squared error where ``spec.clip`` is "mse"; None for ones.
        clip_ratio_R1: ρ for each scale (rows of the weight, groups in order within a row), or a scalar, learned
            already; takes the place of ``spec.clip``.

    Raises:
        UnsupportedPolicy: the format is ``none``, or ``group_size`` does not divide I.
    """
    grid = weight_grid(spec)
    rows_RG = _weight_rows(w_OI, spec)
    ratio = _clip_ratio(rows_RG, w_OI, spec, grid, importance_I) if clip_ratio_R1 is None else clip_ratio_R1
    if isinstance(ratio, Tensor):
        ratio = ratio.to(w_OI.dtype)
    scale_R1 = row_scales(rows_RG, grid=grid, clip_ratio=ratio)
    return scale_R1.reshape(1 if spec.granularity == "tensor" else w_OI.shape[0], -1)


def codes_on_scale(w_OI: Tensor, spec: WeightQuantization, scale: Tensor) -> Quantized:
    """The nearest codes against a scale of :func:`weight_scale`'s shape, in any dtype.

    Raises:
        UnsupportedPolicy: the format is ``none``.
    """
    grid = weight_grid(spec)
    rows_RG = w_OI.reshape(scale.numel(), -1)
    codes_RG = row_codes(rows_RG, scale.reshape(-1, 1).to(w_OI.dtype), grid=grid)
    return Quantized(codes=codes_RG.to(grid.storage).reshape(w_OI.shape), scale=scale, bits=grid.bits)


def weight_grid(spec: WeightQuantization) -> Grid:
    """The grid of the weight's codes.

    Raises:
        UnsupportedPolicy: the format is ``none``.
    """
    grid = grid_of(spec.format)
    if grid is None:
        raise UnsupportedPolicy(
            detail="weights.format is 'none', which has no codes.", hint="Use a format from int2 to int8, or fp8."
        )
    return grid


def fake_quantize_weight(
    w_OI: Tensor,
    spec: WeightQuantization,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
) -> Tensor:
    """``quantize_weight(…).dequantize()`` with straight-through gradients, to ``clip_ratio_R1`` too; the identity for
    format ``none``. Arguments as for :func:`weight_scale`.

    Raises:
        UnsupportedPolicy: ``group_size`` does not divide I.
    """
    grid = grid_of(spec.format)
    if grid is None:
        return w_OI
    rows_RG = _weight_rows(w_OI, spec)
    ratio = _clip_ratio(rows_RG, w_OI, spec, grid, importance_I) if clip_ratio_R1 is None else clip_ratio_R1
    return fake_quantize_on_grid(rows_RG, grid=grid, clip_ratio=ratio).reshape(w_OI.shape)


def fake_quantize_activation(x_TI: Tensor, spec: ActivationQuantization, *, clip_ratio: Tensor | None = None) -> Tensor:
    """Dynamic per-token rounding with scale = clip_ratio · absmax / q_max, straight-through gradients.

    ``x_TI`` may have any number of leading axes; the last holds a token's channels. The identity for ``none``.

    Args:
        clip_ratio: a scalar, or one for each token [T, 1], that gets its gradient; takes the place of the policy's.
    """
    grid = grid_of(spec.format)
    if grid is None:
        return x_TI
    return fake_quantize_on_grid(x_TI, grid=grid, clip_ratio=spec.clip_ratio if clip_ratio is None else clip_ratio)


def _rows_per_channel(w_OI: Tensor, _: WeightQuantization) -> Tensor:
    return w_OI


def _rows_per_tensor(w_OI: Tensor, _: WeightQuantization) -> Tensor:
    return w_OI.reshape(1, -1)


def _rows_per_group(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    size, width = spec.group_size, w_OI.shape[-1]
    if size is None or width % size:
        divisors = " or ".join(str(each) for each in _nearest_divisors(width, size or width))
        raise UnsupportedPolicy(
            detail=f"weights.group_size is {size}, which does not divide a layer's {width} input channels.",
            hint=f"Use {divisors}, the nearest divisors of {width}, or granularity 'channel'.",
        )
    return w_OI.reshape(-1, size)


def _nearest_divisors(width: int, size: int) -> list[int]:
    """The largest divisor of ``width`` below ``size`` and the smallest above, where there are any."""
    divisors = [each for each in range(_SMALLEST_GROUP, width) if width % each == 0] + [width]
    below = [each for each in divisors if each < size]
    above = [each for each in divisors if each >= size]
    return below[-1:] + above[:1]


_WEIGHT_ROWS: Final[dict[str, Callable[[Tensor, WeightQuantization], Tensor]]] = {
    "channel": _rows_per_channel,
    "group": _rows_per_group,
    "tensor": _rows_per_tensor,
}


def _weight_rows(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    """The values that share a scale, one row for each scale."""
    return _WEIGHT_ROWS[spec.granularity](w_OI, spec)


def _no_clip(_rows_RG: Tensor, _grid: Grid, _weight_RG: Tensor | None) -> float:
    return 1.0


def _mse_clip(rows_RG: Tensor, grid: Grid, weight_RG: Tensor | None) -> Tensor:
    return mse_clip_ratio(rows_RG, grid=grid, weight_RG=weight_RG)


_CLIPS: Final[dict[str, Callable[[Tensor, Grid, Tensor | None], float | Tensor]]] = {
    "none": _no_clip,
    "mse": _mse_clip,
}


def _clip_ratio(
    rows_RG: Tensor, w_OI: Tensor, spec: WeightQuantization, grid: Grid, importance_I: Tensor | None
) -> float | Tensor:
    """ρ of ``spec.clip``."""
    weight_RG = None
    if importance_I is not None:
        weight_RG = _weight_rows(importance_I.to(w_OI.dtype).expand_as(w_OI), spec)
    return _CLIPS[spec.clip](rows_RG, grid, weight_RG)
