"""Stage ``search`` of kind ``paper``: the experiment of arXiv 2606.09927, and a plan for every scaled site.

    baseline → choose layers → N1, N2 → N3 → T1 → T2 → T3 → report and figures

Each pair of member and site has one small file. So a resumed run skips what is done, and a member that two families
share is computed once. Every family is measured on validation and on test tokens; :mod:`quant_engine.paper` defines
which of them decides. A site takes the scales that T3 trained only where they are no worse than SmoothRot on validation
tokens. Where grouped-query heads tie a diagonal, the training leaves the site at its start.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quant_engine.errors import UnsupportedPolicy
from quant_engine.models import Site
from quant_engine.paper import (
    BASELINE_POINT,
    Configuration,
    Family,
    Layer,
    Replay,
    ScalePoint,
    experiment_report,
    n1_points,
    n2_points,
    n3_points,
    scale_family,
    t1_configurations,
    t2_configurations,
    training_family,
    unit_budget,
)
from quant_engine.policy import PaperExperiment
from quant_engine.selection import choose_layers
from quant_engine.stages.context.run import Run
from quant_engine.stages.paper.trials import Bench, Phases
from quant_engine.stages.plan_files import write_plan
from quant_engine.stages.search import CHOICE, is_scaled
from quant_engine.stages.stage import Stage, StageProgress, read_json, write_json

REPORT: Final = "experiment.json"
FIGURES: Final = "figures"
_PROFILE: Final = "profile.json"


def paper_stage(run: Run, experiment: PaperExperiment, records: Path, upstream: str) -> Stage:
    """The stage that writes a plan for each scaled site, ``experiment.json``, ``figures/``, and a file for each unit.

    A unit is one site under one member of one family. A family that needs fewer units than its budget skips the rest.

    Raises:
        UnsupportedPolicy: the policy scales no site.
    """
    scaled = [site for site in run.sites if is_scaled(run, site)]
    if not scaled:
        raise UnsupportedPolicy(
            detail="search.kind 'paper' looks for channel scales, but the policy scales none of the targeted linears.",
            hint="Give the targets a transform of kind 'smooth_rotation', or choose another search.",
        )
    budget = unit_budget(experiment, len(scaled))

    def produce(directory: Path, progress: StageProgress) -> None:
        bench = Bench(run, experiment, records, directory, Phases(progress, budget))
        report = _write_results(bench, _experiment(bench, scaled))
        for family, error in report["table"]["mean"].items():
            run.observer.metric(f"paper.{family}", error)

    return Stage(
        name="search",
        unit="trial",
        total=sum(budget.values()),
        inputs={"upstream": upstream, "policy": run.policy_inputs(), "seed": run.spec.calibration.seed},
        produce=produce,
        resumable=True,
    )


def paper_report(directory: Path) -> dict[str, Any]:
    """Read the experiment's report from the stage's directory: plain JSON without times and paths."""
    report: dict[str, Any] = read_json(directory / REPORT)
    return report


def paper_figures(directory: Path) -> list[Path]:
    """The experiment's figures (PNG) in the stage's directory, in the order of their names."""
    return sorted((directory / FIGURES).glob("*.png"))


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """The content of the report, before it becomes JSON."""

    layers: list[Layer]
    sites: list[Site]
    scales: dict[str, Family[ScalePoint]]
    trained: dict[str, Family[Configuration]]
    configuration: Configuration
    replays: list[Replay]


def _experiment(bench: Bench, scaled: list[Site]) -> _Outcome:
    """Run the families in order; each needs those before it."""
    experiment = bench.experiment
    # The layers are ranked on test tokens, as in the paper. This decides what is reported (docs/decisions/0004).
    baseline = bench.score("baseline", [BASELINE_POINT], scaled)[BASELINE_POINT]
    groups = choose_layers({name: score.test for name, score in baseline.items()}, experiment.layers)
    sites = sorted((site for site in scaled if site.name in groups), key=lambda site: list(groups).index(site.name))
    judged = {site.name: baseline[site.name] for site in sites}

    def family(name: str, points: list[ScalePoint]) -> Family[ScalePoint]:
        return scale_family(name, bench.score(name, points, sites), judged)

    n1 = family("N1", n1_points(experiment))
    n2 = family("N2", n2_points(experiment))
    n3 = family("N3", n3_points(n1, n2, experiment.top))
    t1 = training_family("T1", bench.train("T1", t1_configurations(experiment), sites))
    t2 = training_family("T2", bench.train("T2", t2_configurations(experiment, n3, t1), sites))
    # On validation tokens, by which T1 and T2 are judged too.
    best = min(t1.chosen, t2.chosen, key=lambda row: row.mean("validation")).member
    replayed = bench.train("T3", [best], scaled)[best]
    layers = {
        site.name: Layer(name=site.name, block=site.block, group=groups.get(site.name), baseline=baseline[site.name])
        for site in scaled
    }
    return _Outcome(
        layers=[layers[site.name] for site in sites],
        sites=scaled,
        scales={"N1": n1, "N2": n2, "N3": n3},
        trained={"T1": t1, "T2": t2},
        configuration=best,
        replays=[Replay(layer=layers[site.name], score=replayed[site.name]) for site in scaled],
    )


def _write_results(bench: Bench, outcome: _Outcome) -> dict[str, Any]:
    """Write plans, report and figures, and return the report."""
    from quant_engine.paper.figures import draw_figures  # noqa: PLC0415  # matplotlib takes a second; others never draw

    directory = bench.directory
    for site, replay in zip(outcome.sites, outcome.replays, strict=True):
        write_plan(directory, site, bench.kept_plan(site, outcome.configuration, replay.kept))
    report = experiment_report(
        bench.experiment, outcome.layers, outcome.scales, outcome.trained, outcome.configuration, outcome.replays
    )
    write_json(directory / REPORT, report)
    chosen = report["T3"]["configuration"]
    write_json(
        directory / CHOICE, {"scope": "shared", "candidates": report["families"]["N3"]["rows"], "chosen": chosen}
    )
    # ``layers`` begins with the critical ones, the largest baseline error first.
    worst = next(site for site in outcome.sites if site.name == outcome.layers[0].name)
    profile = bench.profile(worst, outcome.configuration)
    write_json(directory / _PROFILE, profile)
    curves = {name: bench.curves(family, outcome.layers) for name, family in outcome.trained.items()}
    (directory / FIGURES).mkdir(exist_ok=True)
    draw_figures(report, curves, profile, directory / FIGURES)
    bench.phases.end("report")
    return report
