"""Store closed-form blocks in low precision (docs/decisions/0014).

The weights get the inverse of the stored matrix. So rounding the matrix costs no exactness, only a little of the
balance that its formula gives. At four bits, fp32 blocks of 64 channels add 15 % to SmolLM2-135M's checkpoint.
"""

import math
from typing import Final

import torch
from torch import Tensor

from quant_engine.transforms.primitives import Block, Primitive

# Peaks in this range need no scaling: e4m3 ends at 448, and small entries beside a small peak would be lost.
_LARGEST: Final = 256.0
_SMALLEST: Final = 1.0


def narrowed(primitives: tuple[Primitive, ...], dtype: torch.dtype) -> tuple[Primitive, ...]:
    """``primitives`` with every ``Block`` stored as ``dtype``, float8_e4m3fn or bfloat16; the others are unchanged.

    A ``Block`` whose largest entry is too large or too small for e4m3 is first scaled by a power of two, which does not
    change the result of a scale-invariant quantizer. A ``Block`` that is not finite is unchanged; computing its inverse
    raises the error.
    """
    return tuple(
        Block(blocks_NKK=_rounded(each.blocks_NKK, dtype)) if isinstance(each, Block) else each for each in primitives
    )


def _rounded(blocks_NKK: Tensor, dtype: torch.dtype) -> Tensor:
    peak = float(blocks_NKK.abs().max())
    if not math.isfinite(peak) or peak == 0.0:
        return blocks_NKK
    if dtype is torch.float8_e4m3fn and not _SMALLEST <= peak <= _LARGEST:
        blocks_NKK = torch.ldexp(blocks_NKK, torch.tensor(8 - math.frexp(peak)[1]))  # its peak in [128, 256)
    return blocks_NKK.to(dtype)
