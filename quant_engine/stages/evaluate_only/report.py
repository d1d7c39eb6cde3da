"""The summary and report of a model that was only measured. Fields that need a quantization are null."""

from typing import Any

import torch

from quant_engine.evaluation.report import special_tokens
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import policy_hash
from quant_engine.stages.context.run import Run
from quant_engine.stages.context.source import described_source
from quant_engine.stages.report.summary import REPORT_VERSION, described_model


def evaluate_only_summary(
    run: Run, rows: list[LayerRow], perplexity: dict[str, Any] | None, windows: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """The ``summary``: fields that need a reference model are null. A dense model is its own original."""
    transforms = [row.transform for row in rows]
    return {
        "selected_mean_error": None,
        "full_mean_error": None,
        "baseline_selected_mean_error": None,
        "baseline_full_mean_error": None,
        "gain_percent": {"selected": None, "full": None},
        "perplexity": None
        if perplexity is None
        else {name: None if found is None else found["perplexity"] for name, found in perplexity.items()},
        "special_tokens": special_tokens(windows),
        "bytes": {
            "original": None if run.base.is_quantized else run.base.weight_bytes,
            "quantized": run.base.weight_bytes,
        },
        "policy": {
            "transforms": {name: transforms.count(name) for name in sorted(set(transforms))},
            "statistics": {},
            "alpha": None,
            "learning_rate": None,
        },
    }


def evaluate_only_report(
    run: Run,
    summary: dict[str, Any],
    rows: list[LayerRow],
    perplexity: dict[str, Any] | None,
    oracle: dict[str, Any],
    windows: dict[str, dict[str, Any] | None],
) -> dict[str, Any]:
    """The whole report, without times and paths, so that a resumed run gives the same bytes."""
    spec = run.spec
    return {
        "version": REPORT_VERSION,
        "model": described_model(run) | {"quantization_config": run.base.stored_config.get("quantization_config")},
        "source": {"quantization": described_source(run.base, run.dense)},
        "policy": spec.policy.model_dump(mode="json"),
        "policy_hash": policy_hash(spec.policy),
        "done": None,
        "changed_files": [],
        "calibration": None,
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "windows": windows,
        "metric": {
            "error": None,
            "baseline": None,
            "perplexity": "exp of the mean negative log-likelihood; the checkpoint's own forward",
        },
        "search": None,
        "training": None,
        "tuning": None,
        "selection": {},
        "selection_regret": None,
        "paper": None,
        "summary": summary,
        "perplexity": perplexity,
        "layers": [row.model_dump() for row in rows],
        "oracle": oracle,
        "verification": None,
        "environment": {"threads": torch.get_num_threads(), "device": spec.device},
    }
