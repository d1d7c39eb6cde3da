"""Layer errors against one dense computation in float64, and under the laws they obey."""

import math

import pytest
import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability, UnsupportedPolicy
from quant_engine.evaluation import layer_errors as module
from quant_engine.evaluation.layer_errors import layer_errors, plan_errors, site_errors
from quant_engine.hadamard import hadamard_matrix
from quant_engine.policy import ActivationQuantization, NumberFormat, Transform, TransformKind, WeightQuantization
from quant_engine.transforms import SitePlan, build_plan
from tests.unit.quant_engine.definitions import channel_statistics
from tests.unit.quant_engine.outliers import massive_input, weight

INT4, TOKEN4 = WeightQuantization(), ActivationQuantization()
NONE = SitePlan(kind=TransformKind.NONE)
HADAMARD_FAMILY = [
    TransformKind.NONE,
    TransformKind.SMOOTH,
    TransformKind.ROTATION,
    TransformKind.SMOOTH_ROTATION,
]
FULL = WeightQuantization(format=NumberFormat.NONE), ActivationQuantization(format=NumberFormat.NONE)


def int4(rows: Tensor) -> Tensor:
    """The paper's quantizer of each row."""
    step = rows.abs().max(dim=1, keepdim=True).values / 7
    return torch.clip(torch.round(rows / step), -8, 7) * step


@pytest.mark.parametrize("kind", HADAMARD_FAMILY)
def test_equals_the_definition(kind: TransformKind) -> None:
    x_TI, w_OI = massive_input(100, 96, dtype=torch.float64), weight(24, 96, dtype=torch.float64)
    plan = build_plan(Transform(kind=kind), channel_statistics(x_TI), w_OI)
    scale = torch.eye(96, dtype=torch.float64) if plan.scales_D is None else torch.diag(plan.scales_D.double())
    rotation = hadamard_matrix(96) if kind.rotates else torch.eye(96, dtype=torch.float64)
    y_TO = x_TI @ w_OI.T
    quantized_TO = int4(x_TI @ scale.inverse() @ rotation.T) @ int4(w_OI @ scale @ rotation.T).T
    error = float((y_TO - quantized_TO).norm())
    found = layer_errors(x_TI, w_OI, plan, INT4, TOKEN4)
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.error_normalized == pytest.approx(error / float(y_TO.norm()), rel=1e-9)
    assert found.sqnr_db == pytest.approx(20 * math.log10(float(y_TO.norm()) / error), rel=1e-9)
    cosine = torch.nn.functional.cosine_similarity(y_TO.flatten(), quantized_TO.flatten(), dim=0)
    assert found.cosine == pytest.approx(float(cosine), rel=1e-9)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TI, w_OI = massive_input(100, 96, dtype=torch.float64), weight(24, 96, dtype=torch.float64)
    whole = layer_errors(x_TI, w_OI, NONE, INT4, TOKEN4)
    sites = plan_errors(x_TI, [w_OI], [NONE], INT4, TOKEN4)
    monkeypatch.setattr(module, "_CHUNK_TOKENS", 7)
    assert layer_errors(x_TI, w_OI, NONE, INT4, TOKEN4).error == pytest.approx(whole.error, rel=1e-12)
    assert plan_errors(x_TI, [w_OI], [NONE], INT4, TOKEN4) == pytest.approx(sites, rel=1e-12)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_each_linear_of_a_site_is_rounded_by_itself(granularity: str) -> None:
    x_TI = massive_input(50, 96)
    linears = [weight(8, 96, seed=1), 100.0 * weight(16, 96, seed=2)]
    grid = WeightQuantization.model_validate({"granularity": granularity})
    plan = build_plan(Transform(), channel_statistics(x_TI), torch.cat(linears))
    together = site_errors(x_TI, linears, plan, grid, TOKEN4)
    assert together == tuple(layer_errors(x_TI, w_OI, plan, grid, TOKEN4) for w_OI in linears)
    whole = math.hypot(*(each.error for each in together))
    assert plan_errors(x_TI, linears, [NONE, plan], grid, TOKEN4)[1] == pytest.approx(whole, rel=1e-6)


def test_smooth_rotation_beats_rounding_alone_on_massive_tokens() -> None:
    x_TI, w_OI = massive_input(200, 96), weight(24, 96)
    plan = build_plan(Transform(), channel_statistics(x_TI), w_OI)
    rotated, rtn = (layer_errors(x_TI, w_OI, each, INT4, TOKEN4) for each in (plan, NONE))
    assert rotated.error < rtn.error
    assert rotated.sqnr_db > rtn.sqnr_db
    assert rotated.cosine > rtn.cosine


def test_more_bits_less_error() -> None:
    x_TI, w_OI = massive_input(200, 96), weight(24, 96)
    plan = build_plan(Transform(), channel_statistics(x_TI), w_OI)
    formats = [NumberFormat(f"int{bits}") for bits in range(2, 9)]
    errors = [
        layer_errors(x_TI, w_OI, plan, WeightQuantization(format=each), ActivationQuantization(format=each)).error
        for each in formats
    ]
    assert errors == sorted(errors, reverse=True)


def test_without_grids_there_is_next_to_no_error() -> None:
    x_TI, w_OI = massive_input(50, 96), weight(24, 96)
    exact = layer_errors(x_TI, w_OI, NONE, *FULL)
    assert (exact.error, exact.error_normalized, exact.sqnr_db) == (0.0, 0.0, 240.0)
    rotated = layer_errors(x_TI, w_OI, build_plan(Transform(), channel_statistics(x_TI), w_OI), *FULL)
    assert rotated.error_normalized < 1e-5


def test_zero_output() -> None:
    found = layer_errors(torch.zeros(3, 96), weight(4, 96), NONE, INT4, TOKEN4)
    assert (found.error, found.error_normalized, found.cosine) == (0.0, 0.0, 1.0)


def test_broken_activations_are_an_error() -> None:
    x_TI = massive_input(50, 96)
    x_TI[3, 4] = float("nan")
    with pytest.raises(NumericalInstability):
        layer_errors(x_TI, weight(4, 96), NONE, INT4, TOKEN4)
    with pytest.raises(NumericalInstability):
        plan_errors(x_TI, [weight(4, 96)], [NONE], INT4, TOKEN4)


def test_a_group_size_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UnsupportedPolicy, match="64"):
        layer_errors(
            massive_input(5, 96), weight(4, 96), NONE, WeightQuantization(granularity="group", group_size=64), TOKEN4
        )
