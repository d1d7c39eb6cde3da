"""The entry point of the engine: it takes a model and a policy, and writes a verified checkpoint and a report.

    load → calibrate → search → train → select → quantize → evaluate → export → verify

``output.also`` may ask for one more stage before the export (:mod:`quant_engine.stages.gguf_source`).

A policy whose task is to evaluate does not change the model: load → evaluate, and a report.

Every stage reads files and writes files (:mod:`quant_engine.stages`), so a killed run continues where it stopped. It
ends with the same bits, because seeds belong to units of work and the number of threads is that of the first attempt.
A kill costs at most one unit of work of the stage. The stages that lead the samples through the blocks (calibrate,
block training, GPTQ, evaluate) store the hidden states unchanged after every block. Learned rotations are stored after
every step. Search, select and the training of scales write one file for each site.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from quant_engine.checkpoint.copied_files import changed_files
from quant_engine.errors import InsufficientMemory, disk_full_as_error
from quant_engine.interface.observer import Observer
from quant_engine.interface.spec import RunResult, RunSpec
from quant_engine.model_files import check_companions
from quant_engine.stages.calibrate import calibrate_stage
from quant_engine.stages.choose_plans import choose_plans
from quant_engine.stages.context.run import prepare_run, start_rotation
from quant_engine.stages.context.source import described_source, source_sentence
from quant_engine.stages.context.windows import check_texts
from quant_engine.stages.evaluate import evaluate_stage, read_perplexity
from quant_engine.stages.evaluate_only.report import evaluate_only_report, evaluate_only_summary
from quant_engine.stages.evaluate_only.stages import (
    evaluate_only_load_stage,
    evaluate_only_perplexity_stage,
    loaded_rows,
    prepare_evaluate_only,
)
from quant_engine.stages.export import CHECKPOINT, export_stage, read_verification, verify_stage
from quant_engine.stages.gguf_source.stage import GGUF_SOURCE, gguf_source_stage, read_gguf_source
from quant_engine.stages.load import load_stage, recorded_oracle, recorded_threads
from quant_engine.stages.quantize.remeasured_rows import final_rows
from quant_engine.stages.quantize.stage import quantize_stage
from quant_engine.stages.report.card_inputs import Measured
from quant_engine.stages.report.summary import report_windows, run_report, run_summary
from quant_engine.stages.stage import Stage, run_stage, stage_digest, write_json
from quant_engine.stages.train.rotation import read_rotation, train_rotation_stage
from quant_engine.stages.tune import read_tuning, tune_stage

FIGURES = "figures"

__all__ = ["Observer", "RunResult", "RunSpec", "run"]


def run(spec: RunSpec, *, work_dir: Path, output_dir: Path, observer: Observer) -> RunResult:
    """Quantize a model, or measure it without changing it.

    Args:
        work_dir: where stages store their files; a later call with the same directory and specification resumes.
        output_dir: receives ``report.json``, ``layers.json``, ``summary.json``, and ``checkpoint/``, ``gguf-source/``
            and ``figures/`` where there are any.
        observer: receives every stage, layer and metric.

    Raises:
        EngineError: any of :mod:`quant_engine.errors`; :class:`VerificationFailed` when the checkpoint is not exact.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    # A resumed run sets the threads of the first attempt; the caller gets its own number back.
    threads = torch.get_num_threads()
    try:
        return _TASKS[spec.policy.task](spec, work_dir, output_dir, observer)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InsufficientMemory(
            detail="The machine ran out of memory.",
            hint="Use fewer samples or shorter sequences, or a machine with more memory.",
        ) from error
    finally:
        torch.set_num_threads(threads)


def check(spec: RunSpec, *, work_dir: Path, observer: Observer) -> None:
    """Check what can be checked without weights: the model's files, the policy and the texts.

    Args:
        spec: its ``model_dir`` may have weight files with nothing but their headers.
        work_dir: for the files of a tokenizer while it is read.

    Raises:
        EngineError: any that :func:`run` would raise before it computes.
    """
    prepare = prepare_evaluate_only if spec.policy.task == "evaluate" else prepare_run
    work_dir.mkdir(parents=True, exist_ok=True)
    context = prepare(spec, work_dir=work_dir, observer=observer)
    check_companions(context.base.files)
    changed_files(context.base.files)  # for its check of generation_config.json by transformers
    check_texts(context)


def _quantize(spec: RunSpec, work_dir: Path, output_dir: Path, observer: Observer) -> RunResult:
    context = prepare_run(spec, work_dir=work_dir, observer=observer)
    policy = spec.policy
    sentence = source_sentence(context.base, context.dense)
    if sentence is not None:
        observer.log(sentence)

    def finished(stage: Stage) -> Path:
        return run_stage(stage, work_dir, observer)

    loaded = finished(load_stage(context))
    # The number of threads decides how sums are split, and so their bits.
    torch.set_num_threads(recorded_threads(loaded))
    digest = stage_digest(loaded)
    if policy.training is not None and policy.training.kind == "rotation" and policy.residual is not None:
        start = start_rotation(context.dense, policy.residual)
        rotated = finished(train_rotation_stage(context, policy.training, start, digest))
        # Every later stage reads the rotated model, so the run is prepared again with the learned matrices.
        context = prepare_run(spec, work_dir=work_dir, observer=observer, rotation=read_rotation(rotated))
        digest = stage_digest(rotated)
    calibrated = finished(calibrate_stage(context, digest))
    choices = choose_plans(context, calibrated, finished)
    plans, rows = choices.selection.plans, choices.selection.rows
    quantized = finished(quantize_stage(context, plans, rows, calibrated, choices.digest))
    tuning = None
    if policy.tuning is not None:
        upstream = stage_digest(quantized)
        quantized = finished(tune_stage(context, policy.tuning, plans, rows, calibrated, quantized, upstream))
        tuning = read_tuning(quantized)
    # Selection measured weights rounded to nearest; GPTQ's are measured again as they are exported.
    rows = final_rows(context, rows, quantized)
    digest = stage_digest(quantized)
    perplexity, evaluated = None, None
    if spec.evaluation.perplexity is not None:
        evaluated = finished(evaluate_stage(context, spec.evaluation.perplexity, quantized, plans, digest))
        perplexity = read_perplexity(evaluated)
        _tell(observer, perplexity)
    source_dir, gguf_source = None, None
    if "gguf-source" in spec.output.also:
        source_dir = finished(gguf_source_stage(context, plans, calibrated, choices.digest))
        gguf_source = read_gguf_source(source_dir)
    windows = report_windows(context, calibrated, evaluated)
    oracle = recorded_oracle(loaded)
    measured = Measured(
        rows=rows,
        perplexity=perplexity,
        calibrated=calibrated,
        choices=choices,
        tuning=tuning,
        windows=windows,
        source={"quantization": described_source(context.base, context.dense)},
        oracle=oracle,
        gguf_source=gguf_source,
    )
    exported = finished(export_stage(context, quantized, plans, digest, measured))
    verified = finished(verify_stage(context, quantized, exported, plans, stage_digest(exported)))
    rate, checkpoint = choices.learning_rate, exported / CHECKPOINT
    summary = run_summary(context, plans, rows, perplexity, checkpoint, rate, windows, gguf_source)
    verification = read_verification(verified)
    report = run_report(
        context,
        summary,
        rows,
        perplexity=perplexity,
        oracle=oracle,
        verification=verification,
        choices=choices,
        tuning=tuning,
        windows=windows,
        gguf_source=gguf_source,
    )
    result = RunResult(summary=summary, report=report, layers=report["layers"], checkpoint_dir=output_dir / CHECKPOINT)
    directories = [checkpoint, *([] if source_dir is None else [source_dir / GGUF_SOURCE])]
    _hand_over(output_dir, result, choices.figures, directories)
    observer.log(f"The checkpoint of {len(rows)} quantized layers is complete and verified.")
    return result


def _evaluate(spec: RunSpec, work_dir: Path, output_dir: Path, observer: Observer) -> RunResult:
    context = prepare_evaluate_only(spec, work_dir=work_dir, observer=observer)
    loaded = run_stage(evaluate_only_load_stage(context), work_dir, observer)
    torch.set_num_threads(recorded_threads(loaded))
    rows, perplexity, evaluated = loaded_rows(loaded), None, None
    if spec.evaluation.perplexity is not None:
        stage = evaluate_only_perplexity_stage(context, spec.evaluation.perplexity, stage_digest(loaded))
        evaluated = run_stage(stage, work_dir, observer)
        perplexity = read_perplexity(evaluated)
        _tell(observer, perplexity)
    windows = report_windows(context, None, evaluated)
    summary = evaluate_only_summary(context, rows, perplexity, windows)
    report = evaluate_only_report(context, summary, rows, perplexity, recorded_oracle(loaded), windows)
    result = RunResult(summary=summary, report=report, layers=report["layers"], checkpoint_dir=None)
    _hand_over(output_dir, result, [])
    observer.log(f"The model's {len(rows)} linears have been read and measured.")
    return result


_TASKS: Final = {"quantize": _quantize, "evaluate": _evaluate}


def _tell(observer: Observer, perplexity: dict[str, Any]) -> None:
    for name, result in perplexity.items():
        if result is not None:
            observer.metric(f"perplexity.{name}", result["perplexity"])


def _hand_over(output_dir: Path, result: RunResult, figures: list[Path], directories: Sequence[Path] = ()) -> None:
    """Write the results and the ``directories`` to ``output_dir``; the work directory is not changed."""
    with disk_full_as_error("the results"):
        output_dir.mkdir(parents=True, exist_ok=True)
        # An earlier call may have left them, and copytree refuses a directory that exists.
        for name in (CHECKPOINT, GGUF_SOURCE):
            shutil.rmtree(output_dir / name, ignore_errors=True)
        for directory in directories:
            shutil.copytree(directory, output_dir / directory.name)
        for name, content in (("summary", result.summary), ("report", result.report), ("layers", result.layers)):
            write_json(output_dir / f"{name}.json", content)
        for figure in figures:
            (output_dir / FIGURES).mkdir(exist_ok=True)
            shutil.copyfile(figure, output_dir / FIGURES / figure.name)
