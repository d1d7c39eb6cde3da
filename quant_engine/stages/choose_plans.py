"""Run search, train and select, as far as a policy asks for them. Each stage reads the files of the stage before."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from quant_engine.policy import BlockTraining, GridSearch, PaperExperiment, RotationTraining, Training
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
"""Runs a stage unless its files are complete, and returns the directory that holds them."""


@dataclass(frozen=True, kw_only=True)
class ChosenPlans:
    """The plans that were chosen, and what the report shows about the choice.

    Attributes:
        digest: the digest of stage ``select``, which made the final choice.
        search, training, paper: for the report; None where the policy asks for none.
        learning_rate: the rate at which the scales were trained, where all sites share one.
        figures: the figures that the paper's experiment drew.
    """

    selection: Selection
    digest: str
    search: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    paper: dict[str, Any] | None = None
    learning_rate: float | None = None
    figures: list[Path] = field(default_factory=list)


def choose_plans(run: Run, calibrated: Path, finished: Finished) -> ChosenPlans:
    """Choose the plan of every site from the calibration records; block training also uses the calibration samples."""
    searched = _search(run, calibrated, finished)
    trained = _train(run, calibrated, searched.directory, finished)
    # A training starts from the searched plans and writes its own, so its files replace those of the search.
    latest = trained.directory or searched.directory
    policy = run.spec.policy
    # Block training makes the selection itself, among the transforms that it learns.
    learned = latest if policy.selection is not None and isinstance(policy.training, BlockTraining) else None
    selected = finished(
        select_stage(
            run, calibrated / RECORDS, plan_reader(latest), stage_digest(latest or calibrated), learned=learned
        )
    )
    reported = searched.reported | trained.reported
    return ChosenPlans(selection=read_selection(run, selected), digest=stage_digest(selected), **reported)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """The result of a search or a training: its directory, if it ran, and its fields of :class:`ChosenPlans`."""

    directory: Path | None = None
    reported: dict[str, Any] = field(default_factory=dict)


def _search(run: Run, calibrated: Path, finished: Finished) -> _Step:
    search = run.spec.policy.search
    if search is None:
        return _Step()
    return _SEARCHES[type(search)](run, search, calibrated, finished)


def _search_grid(run: Run, search: GridSearch, calibrated: Path, finished: Finished) -> _Step:
    directory = finished(search_stage(run, search, calibrated / RECORDS, stage_digest(calibrated)))
    return _Step(directory=directory, reported={"search": read_json(directory / SEARCH_CHOICE)})


def _search_as_paper(run: Run, search: PaperExperiment, calibrated: Path, finished: Finished) -> _Step:
    directory = finished(paper_stage(run, search, calibrated / RECORDS, stage_digest(calibrated)))
    reported = {
        "search": read_json(directory / SEARCH_CHOICE),
        "paper": paper_report(directory),
        "figures": paper_figures(directory),
    }
    return _Step(directory=directory, reported=reported)


_SEARCHES: Final[dict[type, Callable[[Run, Any, Path, Finished], _Step]]] = {
    GridSearch: _search_grid,
    PaperExperiment: _search_as_paper,
}


def _train(run: Run, calibrated: Path, searched: Path | None, finished: Finished) -> _Step:
    training = run.spec.policy.training
    if training is None:
        return _Step()
    return _TRAININGS[type(training)](run, training, calibrated, searched, finished)


def _train_blocks(
    run: Run, training: BlockTraining, calibrated: Path, searched: Path | None, finished: Finished
) -> _Step:
    upstream = stage_digest(searched or calibrated)
    directory = finished(train_blocks_stage(run, training, calibrated, plan_reader(searched), upstream))
    return _Step(directory=directory, reported={"training": read_curves(directory)})


def _train_scales(run: Run, training: Training, calibrated: Path, searched: Path | None, finished: Finished) -> _Step:
    upstream, found = stage_digest(searched or calibrated), plan_reader(searched)
    directory = finished(train_stage(run, training, calibrated / RECORDS, searched, found, upstream))
    return _Step(directory=directory, reported={"learning_rate": read_json(directory / TRAIN_CHOICE)["learning_rate"]})


def _trained_before(*_: Any) -> _Step:
    """Return an empty step: the pipeline learns rotations of the residual stream before the calibration."""
    return _Step()


_TRAININGS: Final[dict[type, Callable[[Run, Any, Path, Path | None, Finished], _Step]]] = {
    BlockTraining: _train_blocks,
    RotationTraining: _trained_before,
    Training: _train_scales,
}
