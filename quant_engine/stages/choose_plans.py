"""Search, train and select in the order that a policy asks for them, each from the files of the one before."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant_engine.stages.calibrate import RECORDS
from quant_engine.stages.context.run import Run
from quant_engine.stages.paper.stage import paper_figures, paper_report, paper_stage
from quant_engine.stages.plan_files import plan_reader
from quant_engine.stages.search import CHOICE as SEARCH_CHOICE
from quant_engine.stages.search import search_stage
from quant_engine.stages.select import Selection, read_selection, select_stage
from quant_engine.stages.stage import Stage, read_json, stage_digest
from quant_engine.stages.train.blocks import read_curves, train_blocks_stage
from quant_engine.stages.train.scales import CHOICE as TRAIN_CHOICE
from quant_engine.stages.train.scales import train_stage

Finished = Callable[[Stage], Path]
"""Runs a stage, unless that has been done, and says where its files are."""


@dataclass(frozen=True, kw_only=True)
class ChosenPlans:
    """What was chosen, and how.

    Attributes:
        digest: of the stage that settled it.
        search, training, paper: for the report; None where the policy asks for none.
        learning_rate: that the scales were trained at, where there was one for all.
        figures: drawn on the way.
    """

    selection: Selection
    digest: str
    search: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    paper: dict[str, Any] | None = None
    learning_rate: float | None = None
    figures: list[Path] = field(default_factory=list)


def choose_plans(run: Run, calibrated: Path, finished: Finished) -> ChosenPlans:
    """Settle every site's plan, from the calibration's records and, to train blocks, its samples."""
    latest, reported = calibrated, dict[str, Any]()
    searched = _search(run, calibrated, finished, reported)
    latest = searched or latest
    trained = _train(run, calibrated, searched, stage_digest(latest), finished, reported)
    latest = trained or latest
    found = plan_reader(trained or searched)
    selected = finished(select_stage(run, calibrated / RECORDS, found, stage_digest(latest)))
    return ChosenPlans(selection=read_selection(run, selected), digest=stage_digest(selected), **reported)


def _search(run: Run, calibrated: Path, finished: Finished, reported: dict[str, Any]) -> Path | None:
    search, records, upstream = run.spec.policy.search, calibrated / RECORDS, stage_digest(calibrated)
    if search is None:
        return None
    if search.kind == "paper":
        searched = finished(paper_stage(run, search, records, upstream))
        reported |= {"paper": paper_report(searched), "figures": paper_figures(searched)}
    else:
        searched = finished(search_stage(run, search, records, upstream))
    reported["search"] = read_json(searched / SEARCH_CHOICE)
    return searched


def _train(
    run: Run, calibrated: Path, searched: Path | None, upstream: str, finished: Finished, reported: dict[str, Any]
) -> Path | None:
    training, found = run.spec.policy.training, plan_reader(searched)
    if training is None or training.kind == "rotation":
        return None
    if training.kind == "block":
        trained = finished(train_blocks_stage(run, training, calibrated, found, upstream))
        reported["training"] = read_curves(trained)
        return trained
    trained = finished(train_stage(run, training, calibrated / RECORDS, searched, found, upstream))
    reported["learning_rate"] = read_json(trained / TRAIN_CHOICE)["learning_rate"]
    return trained
