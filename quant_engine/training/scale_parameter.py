"""The parameter θ of positive scales, s = softplus(θ) + 1e-5 > 0 for every θ (arXiv 2606.09927)."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

OFFSET: Final = 1e-5
_SMALLEST: Final = 1e-7  # the logarithm of 0 would give θ = −∞, which no gradient moves


def scales_from(theta_D: Tensor) -> Tensor:
    """s = softplus(θ) + 1e-5 [D]."""
    return functional.softplus(theta_D) + OFFSET


def theta_from(scales_D: Tensor) -> Tensor:
    """θ = log(expm1(s − 1e-5)) [D], computed without overflow for large s; the inverse of :func:`scales_from`."""
    above_D = (scales_D.double() - OFFSET).clamp(min=_SMALLEST)
    return (above_D + torch.log(-torch.expm1(-above_D))).to(scales_D.dtype)
