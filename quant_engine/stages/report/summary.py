"""The summary and the report of a run, built from the results of its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quant_engine.checkpoint.copied_files import changed_files
from quant_engine.evaluation.report import chosen_policy, selection_regret, summarize
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import policy_hash
from quant_engine.stages.calibrate import calibrated_windows
from quant_engine.stages.choose_plans import ChosenPlans
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.source import described_source
from quant_engine.stages.evaluate import evaluated_windows
from quant_engine.stages.report.done import done_by
from quant_engine.transforms import SitePlan

REPORT_VERSION = 1


def run_summary(
    run: Run,
    plans: Mapping[str, SitePlan],
    rows: list[LayerRow],
    perplexity: dict[str, Any] | None,
    checkpoint: Path,
    learning_rate: float | None,
    windows: Mapping[str, dict[str, Any] | None],
    gguf_source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The ``summary`` of a finished job."""
    summary = summarize(
        rows,
        perplexity=perplexity,
        windows=windows,
        original_bytes=run.base.weight_bytes,
        quantized_bytes=sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
        chosen=chosen_policy(list(plans.values()), learning_rate=learning_rate),
    )
    return summary | written_beside(gguf_source)


def written_beside(gguf_source: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of the summary and of the report about what was asked for besides the checkpoint; empty without it."""
    return {} if gguf_source is None else {"gguf_source": dict(gguf_source)}


def run_report(
    run: Run,
    summary: dict[str, Any],
    rows: list[LayerRow],
    *,
    perplexity: dict[str, Any] | None,
    oracle: dict[str, Any],
    verification: dict[str, Any],
    choices: ChosenPlans,
    tuning: dict[str, Any] | None,
    windows: Mapping[str, dict[str, Any] | None],
    gguf_source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole report, without times and paths, so that a resumed run gives the same bytes."""
    spec = run.spec
    return {
        "version": REPORT_VERSION,
        "model": described_model(run),
        "source": {"quantization": described_source(run.base, run.dense)},
        # What was asked; ``done`` is what was done.
        "policy": spec.policy.model_dump(mode="json"),
        "policy_hash": policy_hash(spec.policy),
        "done": done_by(run, choices.selection.plans, rows, choices, tuning),
        "changed_files": list(changed_files(run.base.files)),
        "calibration": spec.calibration.model_dump(mode="json"),
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "windows": dict(windows),
        "metric": {
            "error": f"E = ‖Y − Q(X')Q(W')ᵀ‖_F on held-out tokens; {_activations(run)}",
            "baseline": "SmoothRot(0.5, max)",
            "perplexity": "exp of the mean negative log-likelihood; the exported checkpoint's own forward",
        },
        "search": choices.search,
        "training": choices.training,
        "tuning": tuning,
        "selection": choices.selection.choices,
        "selection_regret": selection_regret(choices.selection.choices),
        "paper": choices.paper,
        "summary": summary,
        "perplexity": perplexity,
        "layers": [row.model_dump() for row in rows],
        "oracle": oracle,
        "verification": verification,
        "environment": {"threads": torch.get_num_threads(), "device": spec.device},
    } | written_beside(gguf_source)


def _activations(run: Run) -> str:
    """How the layers' errors round activations, by their formats."""
    formats = {settings.activations.format for settings in run.settings.values()}
    found = []
    if any(each.is_integer for each in formats):
        found.append("activations at absmax/(2^(b−1)−1), as the paper and engines")
    if any(each.is_float for each in formats):
        found.append("activations in floating-point formats as at run time")
    return "; ".join(found) or "activations not rounded"


def report_windows(run: Run, calibrated: Path | None, evaluated: Path | None) -> dict[str, dict[str, Any] | None]:
    """The section ``windows`` of the report: what calibration and evaluation really read, from the stages' files."""
    return {
        "calibration": None if calibrated is None else calibrated_windows(run, calibrated),
        "evaluation": None if evaluated is None else evaluated_windows(evaluated),
    }


def described_model(run: Run) -> dict[str, Any]:
    """The description of the model that every report contains."""
    return {
        "architecture": run.model.architecture.class_name,
        "blocks": run.model.blocks,
        "dtype": str(run.source.dtype).removeprefix("torch."),
        "fingerprint": f"sha256:{run.source.fingerprint}",
        "config": run.source.config,
    }
