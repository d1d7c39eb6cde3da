"""Quantize weights and activations on symmetric grids, as a policy specifies it.

Shapes: O output channels, I input channels, T tokens, G groups of an output channel, R rows that share a scale each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids.asymmetric import (
    asymmetric_codes,
    asymmetric_scales,
    fake_quantize_asymmetric,
    row_zero_points,
)
from quant_engine.grids.clip import Rounded, mse_clip_ratio, rounded_on
from quant_engine.grids.formats import export_dtype, grid_of
from quant_engine.grids.grid import Grid
from quant_engine.grids.straight_through import fake_quantize_on_grid, row_codes, row_scales
from quant_engine.policy import NumberFormat, WeightQuantization, in_words

_SMALLEST_GROUP: Final = 8
"""Smallest group size that a hint proposes; the policy allows none smaller."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A weight matrix on its grid.

    Attributes:
        codes: [O, I], int8 in [−2^(bits−1), 2^(bits−1) − 1], or float8_e4m3fn for ``fp8`` and fp4.
        scale: [O, 1] per channel, [O, G] per group of I / G consecutive input channels, [1, 1] per tensor; in the
            dtype of the weight that was quantized.
        bits: width of a code.
        global_scale: g of NVFP4, fp32 [1]: g × scale are e4m3 numbers; None for all others.
        stored_scale: ``scale`` as the format stores it, where the format defines a type for scales.
        dense_dtype: the type to which every reader unpacks the weight; None for the dtype of ``scale``.
        zero_point: the code of zero, int8 in the shape of ``scale``; None where that is 0.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    global_scale: Tensor | None = None
    stored_scale: Tensor | None = None
    dense_dtype: torch.dtype | None = None
    zero_point: Tensor | None = None

    @property
    def is_float4(self) -> bool:
        """Whether the codes are e2m1 numbers."""
        return self.bits == 4 and self.codes.is_floating_point()

    def dequantize(self) -> Tensor:
        """Return (codes − zero point) × scale [O, I], in ``dense_dtype``, or else in the dtype of ``scale``."""
        rows, columns = self.codes.shape
        # [O, I] → [O, G, I / G]; with one scale for the tensor [1, 1, O · I].
        grouped = self.codes.to(self.scale.dtype).reshape(self.scale.shape[0], self.scale.shape[1], -1)
        if self.zero_point is not None:
            grouped = grouped - self.zero_point.to(grouped.dtype).unsqueeze(-1)
        dense_OI = (grouped * self.scale.unsqueeze(-1)).reshape(rows, columns)
        return dense_OI if self.dense_dtype is None else dense_OI.to(self.dense_dtype)


def weight_scale(
    w_OI: Tensor,
    spec: WeightQuantization,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
    peak: Tensor | None = None,
) -> Tensor:
    """Return the scales ρ · absmax / q_max: [O, 1] per channel, [O, G] per group or [1, 1] per tensor; 1 for zeros.

    With a zero point they are those of :mod:`quant_engine.grids.asymmetric`. In fp4 they are rounded to the numbers
    that the format stores.

    Args:
        importance_I: d ≥ 0 [I], the weight of each column's squared error where ``spec.clip`` is "mse"; None for ones.
        clip_ratio_R1: a learned ρ for each scale (rows of the weight, groups in order within a row), or a scalar; it
            replaces ``spec.clip``.
        peak: the largest absolute value for NVFP4's tensor scale, where several weights share one; None for this
            weight's own.

    Raises:
        UnsupportedPolicy: the format is ``none``, or ``group_size`` does not divide I.
    """
    grid = weight_grid(spec).fitted(w_OI, peak)
    rows_RG = _weight_rows(w_OI, spec)
    ratio = _clip_ratio(rows_RG, w_OI, spec, grid, importance_I) if clip_ratio_R1 is None else clip_ratio_R1
    if isinstance(ratio, Tensor):
        # A ratio in a wider type would make the scale wider than the weight.
        ratio = ratio.to(w_OI.dtype)
    if spec.symmetric:
        scale_R1 = row_scales(rows_RG, grid=grid, clip_ratio=ratio)
    else:
        scale_R1 = asymmetric_scales(rows_RG, grid.bits, ratio)
    return scale_R1.reshape(1 if spec.granularity == "tensor" else w_OI.shape[0], -1)


def weight_zero_points(w_OI: Tensor, spec: WeightQuantization) -> Tensor | None:
    """Return the zero points in the shape of the scales, as floating-point numbers; None for symmetric weights."""
    if spec.symmetric:
        return None
    return row_zero_points(_weight_rows(w_OI, spec), weight_grid(spec).bits).reshape(w_OI.shape[0], -1)


def codes_on_scale(w_OI: Tensor, spec: WeightQuantization, scale: Tensor, *, peak: Tensor | None = None) -> Quantized:
    """Return the nearest codes for ``scale``, which has the shape that :func:`weight_scale` returns and any dtype.

    For fp4 the scale has to be computed with the same ``peak``.

    Raises:
        UnsupportedPolicy: the format is ``none``.
    """
    grid = weight_grid(spec)
    # Values that share a scale are neighbors in memory, for each granularity.
    rows_RG, scale_R1 = w_OI.reshape(scale.numel(), -1), scale.reshape(-1, 1).to(w_OI.dtype)
    zero = weight_zero_points(w_OI, spec)
    if zero is None:
        codes_RG = row_codes(rows_RG, scale_R1, grid=grid)
    else:
        codes_RG = asymmetric_codes(rows_RG, scale_R1, zero.reshape(-1, 1), grid.bits)
    return quantized_codes(codes_RG.reshape(w_OI.shape), scale, grid.fitted(w_OI, peak), spec.format, zero)


def quantized_codes(
    codes_OI: Tensor, scale: Tensor, grid: Grid, number_format: NumberFormat, zero_point: Tensor | None = None
) -> Quantized:
    """Return codes [O, I] that are still floating-point numbers as a :class:`Quantized`.

    Args:
        codes_OI: less their zero points, where there are any.
        scale: in the shape that :func:`weight_scale` returns.
        grid: that of ``number_format``, fitted where it needs it.
        zero_point: in the shape of ``scale``.
    """
    if zero_point is not None:
        # [O, I] → [O, G, I / G]
        codes_OGI = codes_OI.reshape(*zero_point.shape, -1) + zero_point.to(codes_OI).unsqueeze(-1)
        codes_OI = codes_OGI.reshape(codes_OI.shape)
    return Quantized(
        codes=codes_OI.contiguous().to(grid.storage),
        scale=scale,
        bits=grid.bits,
        global_scale=grid.global_scale,
        stored_scale=None if grid.scale_storage is None else grid.stored_scale(scale),
        dense_dtype=export_dtype(number_format),
        zero_point=None if zero_point is None else zero_point.to(grid.storage),
    )


def shared_peak(weights: Sequence[Tensor]) -> Tensor:
    """Return the largest absolute value of all weights. Linears that engines run as one share NVFP4's tensor scale."""
    return torch.stack([w_OI.abs().amax() for w_OI in weights]).amax()


def weight_grid(spec: WeightQuantization) -> Grid:
    """Return the grid of the weight's codes.

    Raises:
        UnsupportedPolicy: the format is ``none``.
    """
    grid = grid_of(spec.format)
    if grid is None:
        raise UnsupportedPolicy(
            detail="weights.format is 'none', which has no codes.",
            hint=f"Use {in_words(each for each in NumberFormat if each.quantizes)}.",
        )
    return grid


def fake_quantize_weight(
    w_OI: Tensor,
    spec: WeightQuantization,
    *,
    importance_I: Tensor | None = None,
    clip_ratio_R1: Tensor | None = None,
    peak: Tensor | None = None,
) -> Tensor:
    """Return codes × scale of :func:`codes_on_scale`, with straight-through gradients, also for ``clip_ratio_R1``.

    The result has the weight's dtype; with format ``none`` it is the weight. Arguments as for :func:`weight_scale`.

    Raises:
        UnsupportedPolicy: ``group_size`` does not divide I.
    """
    grid = grid_of(spec.format)
    if grid is None:
        return w_OI
    grid = grid.fitted(w_OI, peak)
    rows_RG = _weight_rows(w_OI, spec)
    ratio = _clip_ratio(rows_RG, w_OI, spec, grid, importance_I) if clip_ratio_R1 is None else clip_ratio_R1
    if not spec.symmetric:
        return fake_quantize_asymmetric(rows_RG, grid.bits, ratio).reshape(w_OI.shape)
    return fake_quantize_on_grid(rows_RG, grid=grid, clip_ratio=ratio).reshape(w_OI.shape)


def _rows_per_channel(w_OI: Tensor, _: WeightQuantization) -> Tensor:
    return w_OI


def _rows_per_tensor(w_OI: Tensor, _: WeightQuantization) -> Tensor:
    return w_OI.reshape(1, -1)


def _rows_per_group(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    # A format that fixes its groups is refused with another hint: its size can not be changed.
    if spec.format.group_size is not None:
        return own_groups(w_OI, spec.format, "weights").flatten(0, -2)
    size, width = spec.group_size, w_OI.shape[-1]
    if size is None or width % size:
        divisors = nearest_divisors(width, size or width)
        raise UnsupportedPolicy(
            detail=f"weights.group_size is {size}, which does not divide a layer's {width} input channels.",
            hint=f"Use {divisors}, the nearest divisors of {width}, or granularity 'channel'.",
        )
    return w_OI.reshape(-1, size)


def own_groups(x_TI: Tensor, number_format: NumberFormat, field: str) -> Tensor:
    """Reshape [..., I] to [..., I / size, size], the groups of a format that fixes their size."""
    size, width = number_format.group_size, x_TI.shape[-1]
    if size is None or width % size:
        raise misfitting_groups(number_format, width, field)
    return x_TI.reshape(*x_TI.shape[:-1], width // size, size)


def misfitting_groups(number_format: NumberFormat, width: int, field: str) -> UnsupportedPolicy:
    """Return the error for a width that the groups of ``number_format`` do not divide."""
    others = in_words(each for each in NumberFormat if each.quantizes and each.group_size is None)
    return UnsupportedPolicy(
        detail=f"{field}.format is {number_format.value}, whose groups of {number_format.group_size} do not divide a "
        f"layer's {width} input channels.",
        hint=f"Add the layer to ignore, or give it an override with {others} for weights and activations.",
    )


def nearest_divisors(width: int, size: int) -> str:
    """Return, as text, the largest divisor of ``width`` below ``size`` and the smallest one above, if they exist."""
    divisors = [each for each in range(_SMALLEST_GROUP, width) if width % each == 0] + [width]
    below = [each for each in divisors if each < size]
    above = [each for each in divisors if each >= size]
    return " or ".join(str(each) for each in below[-1:] + above[:1])


_WEIGHT_ROWS: Final[dict[str, Callable[[Tensor, WeightQuantization], Tensor]]] = {
    "channel": _rows_per_channel,
    "group": _rows_per_group,
    "tensor": _rows_per_tensor,
}


def _weight_rows(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    """Return the values that share a scale as rows, one row for each scale."""
    return _WEIGHT_ROWS[spec.granularity](w_OI, spec)


def _no_clip(_rows_RG: Tensor, _rounded: Rounded, _weight_RG: Tensor | None) -> float:
    return 1.0


def _mse_clip(rows_RG: Tensor, rounded: Rounded, weight_RG: Tensor | None) -> Tensor:
    return mse_clip_ratio(rows_RG, rounded=rounded, weight_RG=weight_RG)


_CLIPS: Final[dict[str, Callable[[Tensor, Rounded, Tensor | None], float | Tensor]]] = {
    "none": _no_clip,
    "mse": _mse_clip,
}


def _clip_ratio(
    rows_RG: Tensor, w_OI: Tensor, spec: WeightQuantization, grid: Grid, importance_I: Tensor | None
) -> float | Tensor:
    """Return ρ according to ``spec.clip``."""
    weight_RG = None
    if importance_I is not None:
        # Expanded first, so that its values are grouped exactly like the weight's.
        weight_RG = _weight_rows(importance_I.to(w_OI.dtype).expand_as(w_OI), spec)
    rounded = rounded_on(grid)
    if not spec.symmetric:
        rounded = partial(_rounded_asymmetric, bits=grid.bits)
    return _CLIPS[spec.clip](rows_RG, rounded, weight_RG)


def _rounded_asymmetric(v_RG: Tensor, ratio_R1: Tensor, *, bits: int) -> Tensor:
    return fake_quantize_asymmetric(v_RG, bits, ratio_R1)
