"""The objective of scale training: E = ‖Y − Q(X Λ⁻¹ Hᵀ) Q(W Λ Hᵀ)ᵀ‖_F on batches that estimate E² without bias.

Shapes: T tokens, I = D input channels, O output channels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.evaluation.layer_errors import EPSILON
from quant_engine.grids import fake_quantize_activation, fake_quantize_weight
from quant_engine.policy import SiteQuantization
from quant_engine.training.sampling import inclusion_probabilities, systematic_draw
from quant_engine.transforms import SitePlan, transform_activation, transform_weight

_CHUNK_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of tokens and outputs, each with its weight in the sum of squares.

    Attributes:
        x_TI, w_OI: inputs and weight rows.
        y_TO: X Wᵀ.
        root_T1, root_O: square roots of the weights 1/π of tokens and outputs.
    """

    x_TI: Tensor
    w_OI: Tensor
    y_TO: Tensor
    root_T1: Tensor
    root_O: Tensor

    def error(self, plan: SitePlan, quantization: SiteQuantization) -> Tensor:
        """The estimate of E = ‖Y − Ŷ‖_F under ``plan``; differentiable in ``plan.scales_D``."""
        x_TI = fake_quantize_activation(transform_activation(self.x_TI, plan), plan.clipped(quantization.activations))
        w_OI = fake_quantize_weight(transform_weight(self.w_OI, plan), quantization.weights)
        # The square roots of the weights, because the norm squares them.
        error: Tensor = torch.linalg.vector_norm((self.y_TO - x_TI @ w_OI.T) * self.root_T1 * self.root_O)
        return error


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """All tokens and outputs of a layer, with the probability of each to be in a batch.

    Attributes:
        x_TI, w_OI, y_TO: the whole layer; ``norm`` is ‖Y‖_F + ε.
        chance_T, chance_O: inclusion probabilities.
    """

    x_TI: Tensor
    w_OI: Tensor
    y_TO: Tensor
    norm: float
    chance_T: Tensor
    chance_O: Tensor

    def draw(self, generator: torch.Generator) -> Batch:
        """Draw a random batch. Equal states of ``generator`` give equal batches."""
        device = self.x_TI.device
        tokens = systematic_draw(self.chance_T, generator).to(device)
        outputs = systematic_draw(self.chance_O, generator).to(device)
        # If all outputs are drawn, they are in order: the copies of W and Y can be avoided.
        every_output = outputs.index.shape[0] == self.w_OI.shape[0]
        y_TO = self.y_TO[tokens.index]
        return Batch(
            x_TI=self.x_TI[tokens.index],
            w_OI=self.w_OI if every_output else self.w_OI[outputs.index],
            y_TO=y_TO if every_output else y_TO[:, outputs.index],
            root_T1=tokens.weight.sqrt()[:, None],
            root_O=outputs.weight.sqrt(),
        )


def prepare_batches(
    x_TI: Tensor, w_OI: Tensor, plan: SitePlan, quantization: SiteQuantization, *, tokens: int, outputs: int
) -> Batches:
    """Prepare batches of about ``tokens`` tokens and ``outputs`` outputs, drawn by their squared error under ``plan``.

    Raises:
        NumericalInstability: Y is not finite.
    """
    with torch.no_grad():
        rounded_OI = fake_quantize_weight(transform_weight(w_OI, plan), quantization.weights)
        by_token, y_TO = [], []
        by_output = torch.zeros(w_OI.shape[0], dtype=torch.float64, device=w_OI.device)
        # In chunks, which limits the memory for transformed inputs and squared errors.
        for chunk_TI in torch.split(x_TI, _CHUNK_TOKENS):
            y_TO.append(chunk_TI @ w_OI.T)
            inputs_TI = fake_quantize_activation(
                transform_activation(chunk_TI, plan), plan.clipped(quantization.activations)
            )
            square_TO = (y_TO[-1] - inputs_TI @ rounded_OI.T).square_()
            by_token.append(square_TO.sum(dim=1))
            by_output += square_TO.sum(dim=0)
        whole_TO = torch.cat(y_TO)
        norm = float(torch.linalg.vector_norm(whole_TO, dtype=torch.float64))
    if not math.isfinite(norm):
        raise NumericalInstability(
            detail="The output of a layer on calibration tokens is not finite.",
            hint="Check the model's weights for NaN or infinity; run it in float32 if its activations overflow.",
        )
    return Batches(
        x_TI=x_TI,
        w_OI=w_OI,
        y_TO=whole_TO,
        norm=norm + EPSILON,
        chance_T=inclusion_probabilities(torch.cat(by_token), tokens),
        chance_O=inclusion_probabilities(by_output, outputs),
    )
