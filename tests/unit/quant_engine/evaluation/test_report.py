"""Rows and the summary have exactly the fields that the API promises."""

from typing import Any

import pytest
import torch

from quant_engine.evaluation.layer_errors import LayerErrors
from quant_engine.evaluation.report import (
    LayerMeasurement,
    chosen_policy,
    gain_percent,
    layer_row,
    selection_regret,
    summarize,
)
from quant_engine.interface.layers import LayerRow
from quant_engine.policy import ActivationQuantization, NumberFormat, Statistic, TransformKind, WeightQuantization
from quant_engine.transforms import SitePlan
from quant_engine.transforms.primitives import Hadamard

ROW_FIELDS = {
    *("name", "block", "role", "scheme", "transform", "alpha", "statistic", "error", "error_normalized", "sqnr_db"),
    *("cosine", "baseline_error", "gain_percent", "rtn_error", "input_absmax", "input_kurtosis", "parameters"),
    *("bytes", "selected"),
}


def _errors(error: float) -> LayerErrors:
    return LayerErrors(error=error, error_normalized=error / 100, sqnr_db=20.0, cosine=0.9)


def _row(error: float, baseline: float, selected: str | None = None, **fields: object) -> dict[str, Any]:
    plan = SitePlan(
        kind=TransformKind.SMOOTH_ROTATION,
        alpha=0.5,
        statistic=Statistic(kind="quantile", q=0.997),
        label="quantile",
        scales_D=torch.ones(2),
        online=(Hadamard(order=2),),
    )
    defaults: dict[str, object] = {
        "name": "model.layers.3.mlp.down_proj",
        "block": 3,
        "role": "feed_forward_inner",
        "weights": WeightQuantization(),
        "activations": ActivationQuantization(),
        "plan": plan,
        "errors": _errors(error),
        "baseline": _errors(baseline),
        "rtn": _errors(3 * baseline),
        "input_absmax": 7.0,
        "input_kurtosis": 3.0,
        "parameters": 100,
        "stored_bytes": 58,
        "selected": selected,
    }
    row = layer_row(LayerMeasurement(**(defaults | fields)))  # type: ignore[arg-type]  # checked by the dataclass
    return row.model_dump()


def _typed(rows: list[dict[str, Any]]) -> list[LayerRow]:
    return [LayerRow.model_validate(row) for row in rows]


def test_a_row_has_the_promised_fields() -> None:
    row = _row(75.0, 100.0, "critical")
    assert set(row) == ROW_FIELDS
    assert row["scheme"] == "W4A4"
    assert row["statistic"] == "quantile(0.997)"
    assert row["gain_percent"] == pytest.approx(25.0)
    assert row["rtn_error"] == 300.0


def test_schemes_and_statistics_are_named() -> None:
    row = _row(
        1.0,
        1.0,
        weights=WeightQuantization(format=NumberFormat.INT8, granularity="group", group_size=32),
        activations=ActivationQuantization(format=NumberFormat.NONE),
        plan=SitePlan(kind=TransformKind.NONE),
    )
    assert (row["scheme"], row["statistic"], row["alpha"]) == ("W8A16-g32", None, None)


@pytest.mark.parametrize(
    ("weights", "activations", "name"), [("fp8", "fp8", "FP8"), ("fp8", "none", "FP8A16"), ("nvfp4", "nvfp4", "NVFP4")]
)
def test_floats_are_named_by_their_format(weights: str, activations: str, name: str) -> None:
    row = _row(
        1.0,
        1.0,
        weights=WeightQuantization.model_validate({"format": weights}),
        activations=ActivationQuantization.model_validate({"format": activations}),
    )
    assert row["scheme"] == name


def test_the_summary_means_over_selected_and_over_all() -> None:
    rows = _typed([_row(50.0, 100.0, "critical"), _row(30.0, 40.0, "normal"), _row(10.0, 10.0)])
    perplexity = {"original": {"perplexity": 30.0}, "quantized": {"perplexity": 33.0}}
    windows = {"calibration": {"special_tokens": ["<bos>"], "samples": 4}, "evaluation": None}
    summary = summarize(
        _typed(rows),
        perplexity=perplexity,
        windows=windows,
        original_bytes=10,
        quantized_bytes=4,
        chosen={"alpha": 0.5},
    )
    assert summary == {
        "selected_mean_error": 40.0,
        "full_mean_error": 30.0,
        "baseline_selected_mean_error": 70.0,
        "baseline_full_mean_error": 50.0,
        "gain_percent": {"selected": pytest.approx(100 * 3 / 7), "full": pytest.approx(40.0)},
        "perplexity": {"original": 30.0, "quantized": 33.0},
        "special_tokens": {"calibration": ["<bos>"], "evaluation": None},
        "bytes": {"original": 10, "quantized": 4},
        "policy": {"alpha": 0.5},
    }
    assert (
        summarize(rows, perplexity=None, windows={}, original_bytes=1, quantized_bytes=1, chosen={})["perplexity"]
        is None
    )


def test_what_was_chosen_is_counted() -> None:
    learned = SitePlan(
        kind=TransformKind.SMOOTH_ROTATION,
        alpha=0.5,
        label="learned",
        scales_D=torch.ones(2),
        online=(Hadamard(order=2),),
    )
    plain = SitePlan(kind=TransformKind.NONE)
    assert chosen_policy([learned, learned, plain], learning_rate=0.02) == {
        "transforms": {"none": 1, "smooth_rotation": 2},
        "statistics": {"learned": 2, "none": 1},
        "alpha": 0.5,
        "learning_rate": 0.02,
    }


def test_a_baseline_of_zero_gains_nothing() -> None:
    assert gain_percent(0.0, 0.0) == 0.0


def test_regret_is_against_the_best_candidate_on_test_tokens() -> None:
    def choice(chosen: str, **errors: float | None) -> dict[str, object]:
        return {"chosen": chosen, "candidates": [{"name": name, "test_error": each} for name, each in errors.items()]}

    found = selection_regret({"a": choice("cat", cat=2.0, none=4.0, wush=None), "b": choice("none", cat=2.0, none=2.1)})
    assert found == {
        "mean_percent": pytest.approx(2.5),
        "worst_percent": pytest.approx(5.0),
        "worst_site": "b",
        "best_chosen": 1,
        "sites": 2,
    }
    assert selection_regret({}) is None
