"""The units of work of the paper's experiment: one site under one scale policy or one training, stored in files.

Shapes: D channels, E test tokens, F fit tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from quant_engine.evaluation.layer_errors import plan_errors
from quant_engine.models import Site
from quant_engine.paper import BASELINE_POINT, Configuration, Family, Layer, ScalePoint, Score, profile_report
from quant_engine.policy import PaperExperiment, Training
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.plan_files import read_plan, write_plan
from quant_engine.stages.stage import StageProgress, read_json, write_json
from quant_engine.training import train_scales
from quant_engine.transforms import SitePlan

_TOGETHER: Final = 4
"""Scale policies that are measured together. They share a layer's unquantized output. A kill loses no more than this
many measurements."""


class Phases:
    """The progress of a stage in phases, each with a budget of units; the end of a phase skips its unused units."""

    def __init__(self, progress: StageProgress, budget: dict[str, int]) -> None:
        self._progress = progress
        self._ends: dict[str, int] = {}
        for name, units in budget.items():
            self._ends[name] = units + max(self._ends.values(), default=0)

    def advance(self) -> None:
        """Count one unit that is done, by this attempt or an earlier one."""
        self._progress.advance()

    def end(self, name: str) -> None:
        """End the phase ``name``."""
        self._progress.reach(self._ends[name])


class Bench:
    """Measures and trains one site under one member at a time, and stores the results in files."""

    def __init__(self, run: Run, experiment: PaperExperiment, records: Path, directory: Path, phases: Phases) -> None:
        self.experiment = experiment
        self.directory = directory
        self.phases = phases
        self._run = run
        self._records = records

    def score(
        self, phase: str, points: Sequence[ScalePoint], sites: Sequence[Site]
    ) -> dict[ScalePoint, dict[str, Score]]:
        """E of each site under each scale policy, by policy and site name."""
        found: dict[ScalePoint, dict[str, Score]] = {point: {} for point in points}
        for site in sites:
            opened = self._open(site)
            for first in range(0, len(points), _TOGETHER):
                together = points[first : first + _TOGETHER]
                # Files of an earlier attempt or of another family (a shared member) are not computed again.
                self._measure(opened, [point for point in together if not self._score_path(site, point).is_file()])
                for point in together:
                    found[point][site.name] = _read_score(self._score_path(site, point))
                    self.phases.advance()
        self.phases.end(phase)
        return found

    def train(
        self, phase: str, configurations: Sequence[Configuration], sites: Sequence[Site]
    ) -> dict[Configuration, dict[str, Score]]:
        """E of each site after each training, by configuration and site name."""
        found: dict[Configuration, dict[str, Score]] = {each: {} for each in configurations}
        for configuration in configurations:
            for site in sites:
                path = self._trial_path(site, configuration)
                # T3 repeats a configuration of T1 or T2, whose files exist for the selected sites.
                if not path.is_file():
                    self._trial(site, configuration)
                found[configuration][site.name] = _read_score(path)
                self.phases.advance()
        self.phases.end(phase)
        return found

    def kept_plan(self, site: Site, configuration: Configuration, trained: bool) -> SitePlan:
        """The trained plan where ``trained`` is true, SmoothRot's otherwise."""
        if trained:
            return read_plan(self._trial_path(site, configuration).parent, site)
        return self._start(self._open(site), BASELINE_POINT)

    def profile(self, site: Site, configuration: Configuration) -> dict[str, Any]:
        """The site's channel scales before and after training."""
        before = self._start(self._open(site), BASELINE_POINT)
        return profile_report(site.name, _unit_scales(before), _unit_scales(self.kept_plan(site, configuration, True)))

    def curves(self, family: Family[Configuration], layers: Sequence[Layer]) -> list[dict[str, Any]]:
        """The validation curves of every training of ``family``, in the order of its rows and of ``layers``."""
        return [
            row.member.fields()
            | {
                "curves": [
                    read_json(self._trial_directory(row.member) / f"{layer.name}.json")["curve"] for layer in layers
                ]
            }
            for row in family.rows
        ]

    def _measure(self, opened: OpenSite, points: Sequence[ScalePoint]) -> None:
        if not points:
            return
        scores = self._scores(opened, [self._start(opened, point) for point in points])
        for point, score in zip(points, scores, strict=True):
            path = self._score_path(opened.site, point)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(score))

    def _trial(self, site: Site, configuration: Configuration) -> None:
        """Train one site with one configuration, and write its plan, its scores and its curve."""
        opened = self._open(site)
        plan, best_step, curve = self._start(opened, configuration.start), 0, list[dict[str, float]]()
        # The training moves each channel's scale by itself. Tied channels need equal scales, so they are not trained.
        if site.tied == 1:
            trained = train_scales(
                opened.record.fit_FD.to(self._device),
                opened.record.validation_VD.to(self._device),
                opened.rows,
                plan,
                self._training(configuration.learning_rate),
                opened.settings,
                seed=self._seed(site),
            )
            plan, best_step = trained.plan, trained.best_step
            curve = [{"step": each.step, "validation_error": each.validation_error} for each in trained.curve]
        (score,) = self._scores(opened, [plan])
        directory = self._trial_directory(configuration)
        directory.mkdir(parents=True, exist_ok=True)
        write_plan(directory, site, plan)
        # Written last, so that this file exists only for a complete trial.
        write_json(self._trial_path(site, configuration), asdict(score) | {"best_step": best_step, "curve": curve})

    def _scores(self, opened: OpenSite, plans: Sequence[SitePlan]) -> list[Score]:
        settings = opened.settings
        test_ED = opened.record.test_ED.to(self._device)
        test = plan_errors(test_ED, opened.linears, plans, settings.weights, settings.activations)
        pairs = zip(test, opened.validation_errors(plans), strict=True)
        return [Score(test=on_test, validation=on_validation) for on_test, on_validation in pairs]

    def _start(self, opened: OpenSite, start: ScalePoint | None) -> SitePlan:
        """The plan with the scales of the policy ``start``, or with s = 1 for None."""
        transform = opened.settings.transform
        # For s = 1 the baseline's plan supplies everything except the scales.
        plan = opened.plan((start or BASELINE_POINT).transform(transform))
        if start is not None:
            return plan
        ones_D = torch.ones(opened.site.features, device=self._device)
        return replace(plan, alpha=None, statistic=None, label="ones", scales_D=ones_D)

    def _training(self, rate: float) -> Training:
        experiment = self.experiment
        return Training(
            steps=experiment.steps,
            warmup=experiment.warmup,
            patience=experiment.patience,
            learning_rates=(rate,),
            batch_tokens=experiment.batch_tokens,
        )

    def _seed(self, site: Site) -> int:
        """The seed of a site's batches. It is the same in every trial, so that trials differ only by configuration."""
        text = f"{self._run.spec.calibration.seed}:{site.name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])

    def _open(self, site: Site) -> OpenSite:
        return OpenSite(self._run, site, self._records)

    @property
    def _device(self) -> torch.device:
        return self._run.model.device

    def _score_path(self, site: Site, point: ScalePoint) -> Path:
        return self.directory / "scores" / site.name / f"{point.label}.json"

    def _trial_directory(self, configuration: Configuration) -> Path:
        return self.directory / "trials" / configuration.label

    def _trial_path(self, site: Site, configuration: Configuration) -> Path:
        return self._trial_directory(configuration) / f"{site.name}.json"


def _read_score(path: Path) -> Score:
    numbers = read_json(path)
    return Score(test=numbers["test"], validation=numbers["validation"])


def _unit_scales(plan: SitePlan) -> list[float]:
    """A plan's scales divided by their geometric mean. The mean has no effect on any error."""
    if plan.scales_D is None:
        return []
    log_D = plan.scales_D.detach().double().cpu().log()
    return [float(each) for each in (log_D - log_D.mean()).exp()]
