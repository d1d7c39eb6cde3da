"""Stage ``train`` of kind ``scales``: learn the channel scales of every scaled site, one site after the other.

With the shared scope, the learning rate is the one with the lowest mean validation error over the selected layers. All
other layers are then trained at that rate. On validation tokens no site ends worse than its start or its baseline.
Where grouped-query heads tie a diagonal, the site stays at the scales that it started with.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch

from quant_engine.models import Site
from quant_engine.policy import Statistic, Training
from quant_engine.search import baseline_transform
from quant_engine.selection import lowest_error
from quant_engine.stages.context.run import Run
from quant_engine.stages.open_site import OpenSite
from quant_engine.stages.plan_files import PlanReader, plan_path, read_plan, write_plan
from quant_engine.stages.search import is_scaled, selected_sites, site_baselines
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json
from quant_engine.training import TrainedScales, train_scales
from quant_engine.transforms import SitePlan

CHOICE: Final = "choice.json"
_L2: Final = Statistic(kind="l2")


def train_stage(
    run: Run, training: Training, records: Path, searched: Path | None, found: PlanReader, upstream: str
) -> Stage:
    """The stage that writes a plan for each scaled site, and the curve of every training. One unit per site.

    Args:
        searched: the directory of the search, which holds the baselines; None without a search.
        found: the plan that the search chose.
    """
    scaled = [site for site in run.sites if is_scaled(run, site)]
    rates = training.learning_rates

    def produce(directory: Path, progress: StageProgress) -> None:
        trials = _Trials(run, training, records, directory, found)
        allowed = rates
        # A single rate needs no choice, hence neither baselines nor selected layers.
        if training.scope == "shared" and len(rates) > 1:
            baselines = site_baselines(run, records, directory, searched, lambda: None)
            allowed = (trials.best_rate(selected_sites(run, baselines, scaled)),)
        for done, site in enumerate(scaled, start=1):
            if not plan_path(directory, site).is_file():
                run.observer.metric("train.validation_error", trials.settle(site, allowed))
            progress.reach(done)
        # Null where each site chose among several rates.
        write_json(directory / CHOICE, {"learning_rate": allowed[0] if len(allowed) == 1 else None})

    return Stage(
        name="train",
        unit="layer",
        total=len(scaled),
        inputs={"upstream": upstream, "policy": run.policy_inputs(), "seed": run.spec.calibration.seed},
        produce=produce,
        resumable=True,
    )


class _Trials:
    """Trainings of one site at one rate each, stored in files when they end."""

    def __init__(self, run: Run, training: Training, records: Path, directory: Path, found: PlanReader) -> None:
        self._run = run
        self._training = training
        self._records = records
        self._directory = directory
        self._found = found

    def best_rate(self, judges: list[Site]) -> float:
        """The rate with the lowest mean error over the sites ``judges``; of equal means, the first rate."""
        rates = self._training.learning_rates
        means = [sum(self._trial(site, rate) for site in judges) / len(judges) for rate in rates]
        return rates[min(range(len(rates)), key=means.__getitem__)]

    def settle(self, site: Site, rates: tuple[float, ...]) -> float:
        """Write the best of the baseline, the start and the plan at each rate; return its validation error."""
        opened = OpenSite(self._run, site, self._records)
        for rate in rates:
            self._trial(site, rate)
        # The untrained plans come first, because the first of equals wins.
        plans = [opened.plan(baseline_transform(opened.settings.transform)), self._start(opened)]
        plans += [opened.on_device(read_plan(self._trial_directory(rate), site)) for rate in rates]
        settings = opened.settings
        best = lowest_error(
            opened.record.validation_VD.to(self._run.model.device),
            opened.linears,
            plans,
            settings.weights,
            settings.activations,
        )
        write_plan(self._directory, site, best.plan)
        return best.errors[best.index]

    def _trial(self, site: Site, rate: float) -> float:
        """Train one site at one rate unless its files exist, and return its validation error."""
        directory = self._trial_directory(rate)
        numbers = directory / f"{site.name}.json"
        if not numbers.is_file():
            directory.mkdir(exist_ok=True)
            opened = OpenSite(self._run, site, self._records)
            plan = self._start(opened)
            curve: list[dict[str, float]] = []
            # Tied channels need equal scales, and the training moves each channel by itself.
            if site.tied == 1:
                trained = self._train(opened, plan, rate)
                plan = trained.plan
                curve = [asdict(point) for point in trained.curve]
            (error,) = opened.validation_errors([plan])
            write_plan(directory, site, plan)
            # Written last, so that this file exists only for a complete training.
            write_json(numbers, {"error": error, "curve": curve})
        return float(read_json(numbers)["error"])

    def _train(self, opened: OpenSite, plan: SitePlan, rate: float) -> TrainedScales:
        record, device = opened.record, self._run.model.device
        # The seed belongs to the site, so the bits depend neither on the order of sites nor on a resumed run.
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}:{opened.site.name}".encode()).digest()[:6])
        return train_scales(
            record.fit_FD.to(device),
            record.validation_VD.to(device),
            opened.rows,
            plan,
            self._training.model_copy(update={"learning_rates": (rate,)}),
            opened.settings,
            seed=seed,
        )

    def _start(self, opened: OpenSite) -> SitePlan:
        """The plan that training starts from: the found plan or the policy's transform, the L2 policy, or s = 1."""
        transform = opened.settings.transform
        if self._training.start == "l2":
            return opened.plan(transform.model_copy(update={"alpha": 0.5, "statistic": _L2}))
        found = self._found(opened.site)
        plan = opened.plan(transform) if found is None else opened.on_device(found)
        if self._training.start == "ones":
            return plan.with_scales(torch.ones(opened.site.features, device=self._run.model.device), "ones")
        return plan

    @property
    def _seed(self) -> int:
        return self._run.spec.calibration.seed

    def _trial_directory(self, rate: float) -> Path:
        return self._directory / f"rate-{rate!r}"
