"""One site with its weights and record: build plans for it, and measure their errors.

The error of a site is that of all its linears together: E² = Σ E_i², Y being the concatenation of their outputs.
Shapes: T tokens, O output and D input channels, P parameters of a diagonal (P < D where heads are tied).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from quant_engine.calibration import SiteRecord, read_record
from quant_engine.evaluation.layer_errors import LayerErrors, plan_errors, site_errors
from quant_engine.grids import shared_peak
from quant_engine.models import Site
from quant_engine.policy import SiteSettings, Transform, TransformKind
from quant_engine.search import search_clip
from quant_engine.stages.context.run import Run
from quant_engine.transforms import SitePlan, Tie, build_plan, transform_activation

BASELINE: Final = Transform(kind=TransformKind.SMOOTH_ROTATION, alpha=0.5)
"""SmoothRot(0.5, max), arXiv 2506.05413: the baseline of every gain."""

# The search for a clip takes every n-th fit token, so it uses fewer than twice this many of them.
_CLIP_TOKENS: Final = 2048
_HEADROOM: Final = 2.0

NO_TRANSFORM: Final = SitePlan(kind=TransformKind.NONE)


@dataclass(frozen=True)
class OpenSite:
    """A site with its record and weights in memory. Drop it before you open the next one."""

    run: Run
    site: Site
    directory: Path

    @cached_property
    def record(self) -> SiteRecord:
        """The calibration record."""
        return read_record(self.directory, self.site)

    @cached_property
    def linears(self) -> list[Tensor]:
        """The weight [O, D] of each linear, fp32."""
        return self.run.site_weights(self.site)

    @cached_property
    def rows(self) -> Tensor:
        """The rows [O, D] of all linears."""
        return torch.cat(self.linears)

    @property
    def settings(self) -> SiteSettings:
        """The policy for this site."""
        return self.run.settings[self.site.name]

    def plan(self, transform: Transform) -> SitePlan:
        """The plan of ``transform``, with its activation clip searched where the policy asks for a search.

        Where heads are tied, scales come from statistics over all heads that share a parameter.
        """
        return self.clipped(self.bare_plan(transform))

    def clipped(self, plan: SitePlan) -> SitePlan:
        """``plan`` with the clip ratio that gives the smallest output error on fit tokens.

        A plan that has a clip ratio is returned unchanged.
        """
        activations = self.settings.activations
        # A plan of an earlier stage may have a ratio that was searched or learned there. It stays.
        if activations.clip == "none" or not activations.format.quantizes or plan.clip_ratio is not None:
            return plan
        return replace(plan, clip_ratio=search_clip(self._clip_tokens, self.linears, plan, activations))

    def with_peak(self, plan: SitePlan) -> SitePlan:
        """``plan`` with the peak that a static scale of its input is computed from, where the grid has one (NVFP4).

        The peak is twice the largest value on the fit tokens. A value above the peak would be cut off. A peak that is
        too large costs nothing, because e4m3 scales reach far enough down.
        """
        if not self.settings.activations.format.spec.static_peak:
            return plan
        chunks = torch.split(self.record.fit_FD, _CLIP_TOKENS)
        moved = [transform_activation(chunk_TD.to(self.run.model.device), self.on_device(plan)) for chunk_TD in chunks]
        return replace(plan, input_peak=_HEADROOM * float(shared_peak(moved)))

    @cached_property
    def _clip_tokens(self) -> Tensor:
        fit_FD = self.record.fit_FD
        return fit_FD[:: max(1, len(fit_FD) // _CLIP_TOKENS)].to(self.run.model.device)

    def bare_plan(self, transform: Transform) -> SitePlan:
        """The plan of ``transform``, without a searched clip."""
        rows_OD, tie = self.rows.cpu(), None
        if self.site.tied > 1:
            tie = Tie(pooled_w=self.site.pool(rows_OD), index_D=self.site.tie_index())
        plan = build_plan(transform, self.record.statistics, rows_OD, tokens=self._fit_tokens, tie=tie)
        return self.on_device(plan)

    def _fit_tokens(self) -> Tensor:
        return self.record.fit_FD

    def errors(self, x_TD: Tensor, plan: SitePlan) -> tuple[LayerErrors, ...]:
        """The errors of each linear."""
        settings = self.settings
        device = self.run.model.device
        return site_errors(x_TD.to(device), self.linears, self.on_device(plan), settings.weights, settings.activations)

    def baseline_errors(self, x_TD: Tensor, plan: SitePlan) -> tuple[LayerErrors, ...]:
        """The errors of each linear under ``plan`` with the paper's quantizer: rounded to nearest, without clips."""
        weights = self.settings.weights.model_copy(update={"clip": "none", "rounding": "rtn"})
        activations = self.settings.activations.model_copy(update={"clip": "none", "clip_ratio": 1.0})
        device = self.run.model.device
        return site_errors(x_TD.to(device), self.linears, self.on_device(plan), weights, activations)

    def baseline_error(self) -> float:
        """E of the whole site under SmoothRot(0.5, max) with the paper's quantizer, on validation tokens."""
        return site_error(self.baseline_errors(self.record.validation_VD, self.bare_plan(BASELINE)))

    def final_errors(self, x_TD: Tensor, plan: SitePlan, rounded: Sequence[Tensor]) -> tuple[LayerErrors, ...]:
        """The errors of each linear with the exported weights Q(W')."""
        settings, device = self.settings, self.run.model.device
        return site_errors(
            x_TD.to(device),
            self.linears,
            self.on_device(plan),
            settings.weights,
            settings.activations,
            rounded=rounded,
        )

    def validation_errors(self, plans: Sequence[SitePlan]) -> tuple[float, ...]:
        """E of the whole site under each plan on validation tokens, by which every choice is made."""
        return self._plan_errors(self.record.validation_VD, plans)

    def test_errors(self, plans: Sequence[SitePlan]) -> tuple[float, ...]:
        """E of the whole site under each plan on test tokens, for reports and never for a choice."""
        return self._plan_errors(self.record.test_ED, plans)

    def _plan_errors(self, x_TD: Tensor, plans: Sequence[SitePlan]) -> tuple[float, ...]:
        settings, device = self.settings, self.run.model.device
        plans = [self.on_device(plan) for plan in plans]
        return plan_errors(x_TD.to(device), self.linears, plans, settings.weights, settings.activations)

    def on_device(self, plan: SitePlan) -> SitePlan:
        """The plan with its tensors on the device of the run."""
        return plan.to(self.run.model.device)


def site_error(errors: Sequence[LayerErrors]) -> float:
    """E of several linears that read one input, as if they were one linear."""
    return math.sqrt(sum(each.error**2 for each in errors))
