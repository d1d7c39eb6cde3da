"""The numbers of a run as the API shows them: layer rows and the summary. Pure functions that return plain JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quant_engine.evaluation.layer_errors import LayerErrors
from quant_engine.interface.layers import LayerGroup, LayerRow
from quant_engine.policy import ActivationQuantization, WeightQuantization
from quant_engine.transforms import SitePlan


@dataclass(frozen=True, kw_only=True)
class LayerMeasurement:
    """One linear, measured on test tokens only.

    Attributes:
        errors: under the chosen plan; ``baseline`` under SmoothRot(0.5, max), ``rtn`` without a transform.
        parameters: the number of weights of the linear; ``stored_bytes`` counts its codes and scales.
    """

    name: str
    block: int
    role: str
    weights: WeightQuantization
    activations: ActivationQuantization
    plan: SitePlan
    errors: LayerErrors
    baseline: LayerErrors
    rtn: LayerErrors
    input_absmax: float
    input_kurtosis: float
    parameters: int
    stored_bytes: int
    selected: LayerGroup | None


def layer_row(layer: LayerMeasurement) -> LayerRow:
    """The row of a layer, with a value for every column."""
    return LayerRow(
        name=layer.name,
        block=layer.block,
        role=layer.role,
        scheme=scheme_name(layer.weights, layer.activations),
        transform=layer.plan.kind.value,
        alpha=layer.plan.alpha,
        statistic=statistic_name(layer.plan),
        error=layer.errors.error,
        error_normalized=layer.errors.error_normalized,
        sqnr_db=layer.errors.sqnr_db,
        cosine=layer.errors.cosine,
        baseline_error=layer.baseline.error,
        gain_percent=gain_percent(layer.errors.error, layer.baseline.error),
        rtn_error=layer.rtn.error,
        input_absmax=layer.input_absmax,
        input_kurtosis=layer.input_kurtosis,
        parameters=layer.parameters,
        bytes=layer.stored_bytes,
        selected=layer.selected,
    )


def selection_regret(choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """How far E on test tokens is above that of each site's best candidate, in percent; None without choices.

    ``worst_site`` is the site where the choice on validation tokens lost most.
    """
    regrets = {}
    for site, choice in choices.items():
        # Candidates that can not be used have no error. A best error of 0 gives no ratio.
        errors = {row["name"]: row["test_error"] for row in choice["candidates"] if row["test_error"] is not None}
        best = min(errors.values(), default=0.0)
        if choice["chosen"] in errors and best > 0.0:
            regrets[site] = 100.0 * (errors[choice["chosen"]] / best - 1.0)
    if not regrets:
        return None
    worst = max(regrets, key=regrets.__getitem__)
    return {
        "mean_percent": sum(regrets.values()) / len(regrets),
        "worst_percent": regrets[worst],
        "worst_site": worst,
        "best_chosen": sum(value == 0.0 for value in regrets.values()),
        "sites": len(regrets),
    }


def with_errors(row: LayerRow, errors: LayerErrors) -> LayerRow:
    """The row of a layer that was measured again with the exported weights.

    Raises:
        ValueError: the row has no baseline.
    """
    return row.model_copy(
        update={
            "error": errors.error,
            "error_normalized": errors.error_normalized,
            "sqnr_db": errors.sqnr_db,
            "cosine": errors.cosine,
            "gain_percent": gain_percent(errors.error, measured(row.baseline_error)),
        }
    )


def summarize(
    rows: Sequence[LayerRow],
    *,
    perplexity: Mapping[str, Mapping[str, Any] | None] | None,
    windows: Mapping[str, Mapping[str, Any] | None],
    original_bytes: int,
    quantized_bytes: int,
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """The ``summary`` of a finished job: mean E over the selected and over all layers, with the baseline's.

    ``windows`` is the section of that name in the report.

    Raises:
        ValueError: a row has no error, or no baseline.
    """
    selected = [row for row in rows if row.selected is not None]
    errors = {name: _mean_errors(part) for name, part in (("selected", selected), ("full", rows))}
    return {
        "selected_mean_error": errors["selected"][0],
        "full_mean_error": errors["full"][0],
        "baseline_selected_mean_error": errors["selected"][1],
        "baseline_full_mean_error": errors["full"][1],
        "gain_percent": {name: gain_percent(*pair) for name, pair in errors.items()},
        "perplexity": None
        if perplexity is None
        else {name: found and found["perplexity"] for name, found in perplexity.items()},
        "special_tokens": special_tokens(windows),
        "bytes": {"original": original_bytes, "quantized": quantized_bytes},
        "policy": dict(chosen),
    }


def special_tokens(windows: Mapping[str, Mapping[str, Any] | None]) -> dict[str, list[str] | None]:
    """The special tokens that the windows of each use begin with; none is an empty list, None means no windows."""
    return {use: None if found is None else list(found["special_tokens"]) for use, found in windows.items()}


def chosen_policy(plans: Sequence[SitePlan], *, learning_rate: float | None) -> dict[str, Any]:
    """The number of sites per transform and per statistic, and α and the learning rate where all sites share one."""
    return {
        "transforms": _counts([plan.kind.value for plan in plans]),
        "statistics": _counts([statistic_name(plan) or "none" for plan in plans]),
        "alpha": _shared([plan.alpha for plan in plans if plan.alpha is not None]),
        "learning_rate": learning_rate,
    }


def scheme_name(weights: WeightQuantization, activations: ActivationQuantization) -> str:
    """The name of a scheme: ``W4A4``, ``W8A16``; ``W4A4-g128`` for groups of 128; ``FP8``, ``NVFP4A16`` for floats."""
    if weights.format.is_float:
        return weights.format.name + ("A16" if activations.format.bits is None else "")
    group = "" if weights.group_size is None else f"-g{weights.group_size}"
    return f"W{weights.format.bits or 16}A{activations.format.bits or 16}{group}"


def statistic_name(plan: SitePlan) -> str | None:
    """The name of a plan's statistic: ``absmax``, ``l2``, ``quantile(0.997)``, ``learned``; None without scales."""
    if plan.scales_D is None:
        return None
    if plan.label == "quantile" and plan.statistic is not None:
        return f"quantile({plan.statistic.q:g})"
    return plan.label


def gain_percent(error: float, baseline: float) -> float:
    """How far ``error`` is below ``baseline``, in percent of it; 0 where both are zero."""
    return 100.0 * (1.0 - error / baseline) if baseline else 0.0


def measured(error: float | None) -> float:
    """Return an error that must be present, because this run quantized the model.

    Raises:
        ValueError: the error is None.
    """
    if error is None:
        raise ValueError("The layer has no measured error.")
    return error


def _mean_errors(rows: Sequence[LayerRow]) -> tuple[float, float]:
    return _mean(row.error for row in rows), _mean(row.baseline_error for row in rows)


def _mean(errors: Iterable[float | None]) -> float:
    """The mean; 0 without values."""
    values = [measured(error) for error in errors]
    return sum(values) / max(1, len(values))


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def _shared(values: Sequence[float]) -> float | None:
    return values[0] if values and len(set(values)) == 1 else None
