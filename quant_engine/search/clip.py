"""Search the activation clip ratio of a site on a grid. Shapes: T tokens, I input and O output channels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from quant_engine.grids import fake_quantize_activation
from quant_engine.policy import ActivationQuantization
from quant_engine.transforms import SitePlan, transform_activation, transform_weight

RATIOS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""A rotated token is nearly Gaussian. Four bits are then best at about 0.8 of the largest of a thousand values."""


def search_clip(x_TI: Tensor, linears: Sequence[Tensor], plan: SitePlan, activations: ActivationQuantization) -> float:
    """The ratio of :data:`RATIOS` that minimizes ‖(X' − Q(X')) W'ᵀ‖_F with unrounded weights; of equals, the larger."""
    with torch.no_grad():
        rotated_TI = transform_activation(x_TI, plan)
        w_OI = transform_weight(torch.cat(list(linears)), plan)
        # ‖R W'ᵀ‖² = Σ (R G) ⊙ R with G = W'ᵀ W', which is computed once for all ratios.
        gram_II = w_OI.mT @ w_OI
        errors = []
        for ratio in RATIOS:
            settings = replace(plan, clip_ratio=ratio).clipped(activations)
            residual_TI = fake_quantize_activation(rotated_TI, settings) - rotated_TI
            errors.append(float(((residual_TI @ gram_II) * residual_TI).sum(dtype=torch.float64)))
    return RATIOS[min(range(len(RATIOS)), key=errors.__getitem__)]
