"""The engine's one entry: a model and a policy in, a verified checkpoint and a report out.

    load → calibrate → search → train → select → quantize → evaluate → export → verify

Every stage goes from files to files (:mod:`quant_engine.stages`), so a killed run takes up where it was and ends with
the same bits: seeds belong to units of work, and the number of threads is the first attempt's.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quant_engine.errors import InsufficientMemory, disk_full_as_error
from quant_engine.stages.calibrate import RECORDS, calibrate_stage
from quant_engine.stages.context import Run, prepare_run
from quant_engine.stages.evaluate import evaluate_stage, read_perplexity
from quant_engine.stages.export import CHECKPOINT, export_stage, read_verification, verify_stage
from quant_engine.stages.files import Stage, manifest_digest, run_stage, write_json
from quant_engine.stages.load import load_stage, recorded_threads
from quant_engine.stages.observer import Observer
from quant_engine.stages.plans import plan_reader
from quant_engine.stages.quantize import quantize_stage
from quant_engine.stages.search import search_stage
from quant_engine.stages.select import Selection, read_selection, select_stage
from quant_engine.stages.spec import RunResult, RunSpec
from quant_engine.stages.summary import run_report, run_summary
from quant_engine.stages.train import train_stage

__all__ = ["Observer", "RunResult", "RunSpec", "run"]


def run(spec: RunSpec, *, work_dir: Path, output_dir: Path, observer: Observer) -> RunResult:
    """Quantize a model.

    Args:
        work_dir: where stages keep their files; a later call with the same directory and specification resumes.
        output_dir: receives ``checkpoint/``, ``report.json``, ``layers.json`` and ``summary.json``.
        observer: told about every stage, layer and metric.

    Raises:
        EngineError: any of :mod:`quant_engine.errors`; :class:`VerificationFailed` when the checkpoint is not exact.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    try:
        return _run(spec, work_dir, output_dir, observer)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InsufficientMemory(
            detail="The machine ran out of memory.",
            hint="Use fewer samples or shorter sequences, or a machine with more memory.",
        ) from error
    finally:
        torch.set_num_threads(threads)


def _run(spec: RunSpec, work_dir: Path, output_dir: Path, observer: Observer) -> RunResult:
    context = prepare_run(spec, work_dir=work_dir, observer=observer)

    def finished(stage: Stage) -> Path:
        return run_stage(stage, work_dir, observer)

    loaded = finished(load_stage(context))
    torch.set_num_threads(recorded_threads(loaded))
    calibrated = finished(calibrate_stage(context, manifest_digest(loaded)))
    choices = _choose(context, calibrated, finished)
    plans, digest = choices.selection.plans, manifest_digest(choices.selected)
    quantized = finished(quantize_stage(context, plans, digest))
    digest = manifest_digest(quantized)
    perplexity = None
    if spec.evaluation.perplexity is not None:
        evaluated = finished(evaluate_stage(context, spec.evaluation.perplexity, quantized, plans, digest))
        perplexity = read_perplexity(evaluated)
        for name, result in perplexity.items():
            observer.metric(f"perplexity.{name}", result["perplexity"])
    exported = finished(export_stage(context, quantized, plans, digest))
    verified = finished(verify_stage(context, quantized, exported, plans, manifest_digest(exported)))
    rows = choices.selection.rows
    summary = run_summary(context, choices.selection, perplexity, exported / CHECKPOINT, choices.trained)
    verification = read_verification(verified)
    report = run_report(
        context, summary, rows, perplexity=perplexity, verification=verification, searched=choices.searched
    )
    return _hand_over(context, exported / CHECKPOINT, output_dir, summary, report, rows)


@dataclass(frozen=True, kw_only=True)
class _Choices:
    """Where the stages that choose left their files; None for those that the policy does not ask for."""

    searched: Path | None
    trained: Path | None
    selected: Path
    selection: Selection


def _choose(context: Run, calibrated: Path, finished: Callable[[Stage], Path]) -> _Choices:
    """Search, train, select. They work on records alone."""
    policy, records = context.spec.policy, calibrated / RECORDS
    searched = trained = None
    latest = calibrated
    if policy.search is not None:
        latest = searched = finished(search_stage(context, policy.search, records, manifest_digest(latest)))
    if policy.training is not None:
        stage = train_stage(context, policy.training, records, searched, plan_reader(searched), manifest_digest(latest))
        latest = trained = finished(stage)
    found = plan_reader(trained or searched)
    selected = finished(select_stage(context, records, found, manifest_digest(latest)))
    selection = read_selection(context, selected)
    return _Choices(searched=searched, trained=trained, selected=selected, selection=selection)


def _hand_over(
    context: Run,
    checkpoint: Path,
    output_dir: Path,
    summary: dict[str, Any],
    report: dict[str, Any],
    rows: list[dict[str, Any]],
) -> RunResult:
    """Put the results into ``output_dir``; the work directory keeps its own."""
    target = output_dir / CHECKPOINT
    with disk_full_as_error("the results"):
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(checkpoint, target)
        for name, content in (("summary", summary), ("report", report), ("layers", rows)):
            write_json(output_dir / f"{name}.json", content)
    context.observer.log(f"The checkpoint of {len(rows)} quantized layers is complete and verified.")
    return RunResult(summary=summary, report=report, layers=rows, checkpoint_dir=target)
