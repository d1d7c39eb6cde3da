"""Weights and activations on symmetric integer grids, as a policy's frozen specifications ask for.

Shapes: O output channels, I input channels, T tokens, G groups of an output channel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import UnsupportedPolicy
from quant_engine.grids.straight_through import fake_quantize_rows, row_codes, row_scales
from quant_engine.policy import ActivationQuantization, WeightQuantization


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A weight matrix on its grid.

    Attributes:
        codes: int8 [O, I] in [−2^(bits−1), 2^(bits−1) − 1].
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


def quantize_weight(w_OI: Tensor, spec: WeightQuantization) -> Quantized:
    """Round to nearest with scale = absmax / (2^(bits−1) − 1); a row of zeros has scale 1 and codes 0.

    Raises:
        UnsupportedPolicy: the format is ``none``, or ``group_size`` does not divide I.
    """
    bits = spec.format.bits
    if bits is None:
        raise UnsupportedPolicy(
            detail="weights.format is 'none', which has no codes.", hint="Use a format from int2 to int8."
        )
    rows_RG = _weight_rows(w_OI, spec)
    scale_R1 = row_scales(rows_RG, bits=bits)
    codes_OI = row_codes(rows_RG, scale_R1, bits=bits).to(torch.int8).reshape(w_OI.shape)
    scale = scale_R1.reshape(1 if spec.granularity == "tensor" else w_OI.shape[0], -1)
    return Quantized(codes=codes_OI, scale=scale, bits=bits)


def fake_quantize_weight(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    """``quantize_weight(w_OI, spec).dequantize()`` with straight-through gradients; the identity for format ``none``.

    Raises:
        UnsupportedPolicy: ``group_size`` does not divide I.
    """
    if spec.format.bits is None:
        return w_OI
    return fake_quantize_rows(_weight_rows(w_OI, spec), bits=spec.format.bits).reshape(w_OI.shape)


def fake_quantize_activation(x_TI: Tensor, spec: ActivationQuantization) -> Tensor:
    """Dynamic per-token rounding with scale = clip_ratio · absmax / (2^(bits−1) − 1), straight-through gradients.

    ``x_TI`` may have any number of leading axes; the last holds a token's channels. The identity for ``none``.
    """
    if spec.format.bits is None:
        return x_TI
    return fake_quantize_rows(x_TI, bits=spec.format.bits, clip_ratio=spec.clip_ratio)


def _rows_per_channel(w_OI: Tensor, _: WeightQuantization) -> Tensor:
    return w_OI


def _rows_per_tensor(w_OI: Tensor, _: WeightQuantization) -> Tensor:
    return w_OI.reshape(1, -1)


def _rows_per_group(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    size, width = spec.group_size, w_OI.shape[-1]
    if size is None or width % size:
        raise UnsupportedPolicy(
            detail=f"weights.group_size is {size}, which does not divide a layer's {width} input channels.",
            hint=f"Use a divisor of {width}, or granularity 'channel'.",
        )
    return w_OI.reshape(-1, size)


_WEIGHT_ROWS: Final[dict[str, Callable[[Tensor, WeightQuantization], Tensor]]] = {
    "channel": _rows_per_channel,
    "group": _rows_per_group,
    "tensor": _rows_per_tensor,
}


def _weight_rows(w_OI: Tensor, spec: WeightQuantization) -> Tensor:
    """The values that share a scale, one row for each scale."""
    return _WEIGHT_ROWS[spec.granularity](w_OI, spec)
