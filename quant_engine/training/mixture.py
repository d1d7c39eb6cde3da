"""A site's transform, chosen among candidates while their parameters are learned (arXiv 2511.17809).

    Y ≈ Σ_t p_t Q(X A_t) Q(W A_t⁻ᵀ)ᵀ,   p = softmax(a / τ)

The weights a are learned together with every A_t. After the steps of the mixture only the transform with the largest
weight is left, and the rest of the training is its own.

Shapes: T tokens, I input channels, O output channels, N candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant_engine.policy import Differentiable
from quant_engine.training.learnable import LearnablePlan
from quant_engine.training.quantized_linears import QuantizedSite
from quant_engine.transforms import SitePlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The start of a site whose transform is chosen while it is learned.

    Attributes:
        plans: the start of each candidate, the first of which counts as the start of the site.
        settings: how the weights are learned. ``settings.steps`` are those of the mixture.
    """

    plans: Sequence[SitePlan]
    settings: Differentiable


class LearnableMixture(nn.Module):
    """Learnable plans of one site with a weight for each. It is used as a single :class:`LearnablePlan` is.

    Args:
        plans: the candidates, with their parameters.
        settings: τ, and the number of steps after which the largest weight is final.
        steps: those of the whole training.
    """

    def __init__(self, plans: Sequence[LearnablePlan], settings: Differentiable, steps: int) -> None:
        super().__init__()
        self._plans = tuple(plans)
        self._registered = nn.ModuleList(self._plans)  # a module does not find parameters in a tuple
        self._temperature = settings.temperature
        self._mixed_share = settings.steps / steps
        self._settled = False
        # All weights are equal at first. The first plan is the largest of equals, and it is the start of the site.
        self.logit_N = nn.Parameter(torch.zeros(len(self._plans), device=self._plans[0].device))

    @property
    def weights(self) -> tuple[float, ...]:
        """p of each candidate, in order."""
        return tuple(self._shares().tolist())

    @property
    def index(self) -> int:
        """The place of the largest weight; of equals, the first."""
        weights = self.weights
        return weights.index(max(weights))

    def clip_parameters(self) -> list[nn.Parameter]:
        """The logits of all candidates' clip ratios."""
        return [each for plan in self._plans for each in plan.clip_parameters()]

    def transform_parameters(self) -> list[nn.Parameter]:
        """All other parameters of the candidates, without a."""
        return [each for plan in self._plans for each in plan.transform_parameters()]

    def advance(self, share: float) -> None:
        """Set the share of the training that is done. Past the share of the mixture, the choice is final."""
        self._settled = self._settled or share > self._mixed_share
        for plan in self._plans:
            plan.advance(share)

    def quantized(self) -> QuantizedSite:
        """The mixture as one site: rounded inputs side by side [..., N·I], and weights p_t Q(W A_t⁻ᵀ) [O, N·I]."""
        if self._settled:
            return self._plans[self.index].quantized()
        sites, share_N = [plan.quantized() for plan in self._plans], self._shares()
        linears = zip(*(site.weights for site in sites), strict=True)

        def rounder(x_TI: Tensor) -> Tensor:
            return torch.cat([site.rounder(x_TI) for site in sites], dim=-1)

        weights = tuple(
            torch.cat([share * w_OI for share, w_OI in zip(share_N, each, strict=True)], dim=-1) for each in linears
        )
        return QuantizedSite(rounder=rounder, weights=weights)

    def plan(self) -> SitePlan:
        """The learned plan of the candidate with the largest weight."""
        return self._plans[self.index].plan()

    def _shares(self) -> Tensor:
        return (self.logit_N / self._temperature).softmax(dim=0)
