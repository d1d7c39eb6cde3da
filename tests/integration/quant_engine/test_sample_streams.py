"""The calibration streams, and what GPTQ and its correction make of them, against whole-model forwards with hooks.

Shapes: T tokens, O output and I input channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from quant_engine.calibration import read_record
from quant_engine.checkpoint import load
from quant_engine.models import Site
from quant_engine.policy import Policy
from quant_engine.stages.calibrate import training_windows
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize import stage
from quant_engine.stages.quantize.block_files import (
    Plans,
    block_linears,
    quantized_reader,
    stored_weights,
    transformed_block,
)
from quant_engine.stages.quantize.stage import _rounder, _settled, _unrounded
from quant_engine.stages.sample_streams import ORIGINAL, QUANTIZED, TOKEN_CAP, InputMoments, Streams, open_block
from quant_engine.transforms import SitePlan
from quant_engine.windows import Windows
from tests.integration.quant_engine.runs import Left, gate_difference, left_by, policy_of, run_until, small
from tests.tiny_models import write_tiny_model
from tests.unit.quant_engine.definitions import matrix_of

ARCHITECTURES = ("llama", "qwen3", "gemma3", "phi3")
SMALL = small(samples=16)
WITH_PERPLEXITY = small(samples=16, perplexity=True)
_KRONECKER = {"kind": "kronecker", "statistic": {"kind": "l2"}}


def _gptq(correction: float | None, **fields: Any) -> Policy:
    """The weights of ``best-w4a4`` without its training; rounded to nearest where ``correction`` is None."""
    weights = {"rounding": "rtn"} if correction is None else {"gptq": {"correction": correction}}
    return policy_of(preset="best-w4a4", training=None, tuning=None, weights=weights, transform=_KRONECKER, **fields)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Finished runs by architecture and correction, each made once."""

    @cache
    def finished(architecture: str, correction: float | None) -> tuple[Left, list[dict[str, Any]]]:
        out = tmp_path_factory.mktemp(architecture)
        model = write_tiny_model(out / "model", architecture, outliers=True)
        policy = _gptq(correction)
        observer = run_until("verify", model, policy, out, **SMALL)
        return left_by(model, policy, out, **SMALL), observer.rows

    return finished


def _windows(left: Left) -> Windows:
    return training_windows(left.run, left.windows)


def _moments(left: Left, *, corrected: bool) -> tuple[dict[str, InputMoments], list[Tensor]]:
    """Every site's moments in the order of the stage, and the quantized stream behind the last block."""
    run, plans = left.run, left.plans
    streams = Streams(run.model, _windows(left), quantized=corrected)
    found = {}
    for block in range(run.model.blocks):
        state = transformed_block(run, block, plans)
        stored = stored_weights(run, left.quantized, block, plans)
        sites = [site for site in run.sites if site.block == block]
        with open_block(run, streams, block, state) as opened:
            opened.unrounded({site.name: _unrounded(site, state, plans[site.name]) for site in sites})
            for site in sites:
                plan = plans[site.name]
                found[site.name] = opened.moments(site, plan, _rounder(run, site, plan) if corrected else None)
                opened.settle(site, _settled(run, site, plan, stored))
            opened.advance()
    return found, streams.hidden_states.batches(QUANTIZED) if corrected else []


@contextmanager
def _inputs(model: nn.Module, sites: list[Site]) -> Iterator[dict[str, Tensor]]:
    """What each site's first linear is given, [T, I] fp64, after every hook that came before."""
    seen: dict[str, Tensor] = {}
    handles = []
    for site in sites:

        def remember(_module: nn.Module, arguments: tuple[Tensor, ...], name: str = site.name) -> None:
            seen[name] = arguments[0].flatten(0, -2).double()

        handles.append(model.get_submodule(site.readers[0]).register_forward_pre_hook(remember))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _dense(plan: SitePlan, width: int) -> Tensor:
    """A = Λ⁻¹ P, [I, I] fp64."""
    matrix = torch.eye(width, dtype=torch.float64)
    if plan.scales_D is not None:
        matrix = matrix / plan.scales_D.double()
    for primitive in plan.online:
        matrix = matrix @ matrix_of(primitive, width, torch.float64)
    return matrix


def _original_inputs(left: Left) -> dict[str, Tensor]:
    """X A of the model as it was, from transformers' own forward."""
    model = AutoModelForCausalLM.from_pretrained(left.run.spec.model_dir, attn_implementation="sdpa").eval()
    with torch.no_grad(), _inputs(model, left.run.sites) as seen:
        model(_windows(left).ids_ST, use_cache=False)
    return {site.name: seen[site.name] @ _dense(left.plans[site.name], site.features) for site in left.run.sites}


def _quantized_inputs(left: Left) -> dict[str, Tensor]:
    """Q(X̂ A) of the exported checkpoint: what reaches its linears is transformed and rounded."""
    model = load(left.checkpoint)
    with torch.no_grad(), _inputs(model, left.run.sites) as seen:
        model(_windows(left).ids_ST, use_cache=False)
    return {name: x_TI.double() for name, x_TI in seen.items()}


def _caps(x_TI: Tensor) -> Tensor:
    norm_T = x_TI.norm(dim=-1)
    return (TOKEN_CAP * norm_T.median() / norm_T).clamp(max=1.0)[:, None]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("diagonals", [True, False])
def test_a_hessian_is_that_of_the_models_own_transformed_inputs(architecture: str, diagonals: bool, runs: Any) -> None:
    """Also without the diagonals: there massive tokens stay massive, and are capped."""
    left, _ = runs(architecture, 0.0)
    if not diagonals:
        left = replace(left, plans={name: replace(plan, scales_D=None) for name, plan in left.plans.items()})
    moments, _ = _moments(left, corrected=False)
    capped = 0
    for name, x_TI in _original_inputs(left).items():
        factor_T1 = _caps(x_TI)
        capped += int((factor_T1 < 1.0).sum())
        expected = (x_TI * factor_T1).mT @ (x_TI * factor_T1)
        assert _relative(moments[name].hessian_II, expected) < 1e-5, name
        assert moments[name].cross_II is None
    assert diagonals or capped > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_corrected_moments_are_those_of_the_exported_checkpoint(architecture: str, runs: Any) -> None:
    left, _ = runs(architecture, 1.0)
    moments, _ = _moments(left, corrected=True)
    original = _original_inputs(left)
    for name, quantized_TI in _quantized_inputs(left).items():
        x_TI = original[name] * _caps(original[name])
        quantized_TI = quantized_TI * _caps(original[name])
        cross_II = moments[name].cross_II
        assert cross_II is not None
        assert _relative(moments[name].hessian_II, quantized_TI.mT @ quantized_TI) < 1e-5, name
        assert _relative(cross_II, x_TI.mT @ quantized_TI) < 1e-5, name


def _assert_stream_is_exported(left: Left) -> None:
    """The quantized stream behind the last block, against the exported blocks one after the other."""
    _, stream = _moments(left, corrected=True)
    run = left.run
    reader = quantized_reader(left.quantized, block_linears(run, left.plans), run.model)
    entered = run.model.enter(_windows(left).ids_ST)
    hidden = entered.hidden_BTD
    with torch.no_grad():
        for block in range(run.model.blocks):
            with run.model.block(block, *reader) as layer:
                hidden = layer(hidden, **entered.layer_arguments[block])
    assert _relative(torch.cat(stream), hidden) < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_quantized_stream_is_the_exported_models(architecture: str, runs: Any) -> None:
    _assert_stream_is_exported(runs(architecture, 1.0)[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"targets": ["q_proj", "down_proj"]},  # others read or produce what these are transformed with
        {"targets": [r"re:.*layers\.1\..*_proj"]},  # a block of which nothing is quantized
        {"residual": {}, "online": "inner"},
        {"weights": {"format": "fp8", "clip": "none"}, "activations": {"format": "fp8", "clip": "none"}},
        {"weights": {"granularity": "group", "group_size": 16}, "activations": {"format": "none"}},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_the_quantized_stream_follows_whatever_is_quantized(fields: dict[str, Any], tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "qwen2", outliers=True)
    fields = {**fields, "weights": {"gptq": {"correction": 1.0}} | fields.get("weights", {})}
    policy = policy_of(preset="best-w4a4", training=None, tuning=None, **fields)
    run_until("verify", model, policy, tmp_path, **SMALL)
    left = left_by(model, policy, tmp_path, **SMALL)
    assert gate_difference(left) == 0.0
    _assert_stream_is_exported(left)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_rows_are_of_the_weights_that_are_shipped(architecture: str, correction: float, runs: Any) -> None:
    """E of every row again, from the checkpoint's own weights and fused scales, densely in fp64."""
    left, told = runs(architecture, correction)
    rows = {row["name"]: row for row in told}  # told by select first, and again by quantize
    model = load(left.checkpoint)
    for site in left.run.sites:
        plan, settings = left.plans[site.name], left.run.settings[site.name]
        x_TI = read_record(left.records, site).test_ED.double()
        transformed_TI = x_TI @ _dense(plan, site.features)
        bits = settings.activations.format.bits
        assert bits is not None
        assert plan.clip_ratio is not None
        scale_T1 = plan.clip_ratio * transformed_TI.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
        rounded_TI = (transformed_TI / scale_T1).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale_T1
        for reader, w_OI in zip(site.readers, left.run.site_weights(site), strict=True):
            shipped_OI = model.get_submodule(reader).weight.detach().double() * _row_scales(left, reader, len(w_OI))
            y_TO = x_TI @ w_OI.double().T
            error = float((y_TO - rounded_TI @ shipped_OI.T).norm())
            assert rows[reader]["error"] == pytest.approx(error, rel=2e-3), reader
            assert rows[reader]["error_normalized"] == pytest.approx(error / float(y_TO.norm()), rel=2e-3)


def _row_scales(left: Left, linear: str, rows: int) -> Tensor:
    """By how much the rows of a linear were divided: the diagonal of the site that it produces, one elsewhere."""
    scales_O1 = torch.ones(rows, 1, dtype=torch.float64)
    for site in left.run.sites:
        scales_D = left.plans[site.name].scales_D
        if site.producer == linear and scales_D is not None:
            produced = dict(zip(site.tie_index().tolist(), scales_D.tolist(), strict=True))
            scales_O1[rows - len(produced) :, 0] = torch.tensor([produced[i] for i in range(len(produced))])
    return scales_O1


def test_gptq_lowers_the_errors_of_layers(tmp_path: Path) -> None:
    """By its weights alone: beside the rounding of activations the gain would be lost."""
    model = write_tiny_model(tmp_path / "model", outliers=True)
    errors = {}
    for correction in (None, 0.0):
        policy = _gptq(correction, activations={"format": "none"})
        told = run_until("evaluate", model, policy, tmp_path / str(correction), **WITH_PERPLEXITY).rows
        errors[correction] = {row["name"]: row["error_normalized"] for row in told}
    assert errors[0.0].keys() == errors[None].keys()
    gains = [1 - errors[0.0][name] / errors[None][name] for name in errors[None]]
    assert sum(gains) / len(gains) > 0.02


@pytest.mark.parametrize("correction", [None, 1.0])
def test_a_block_is_transformed_once(correction: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformed: list[int] = []

    def counted(run: Run, block: int, plans: Plans) -> dict[str, Tensor]:
        transformed.append(block)
        return transformed_block(run, block, plans)

    monkeypatch.setattr(stage, "transformed_block", counted)
    model = write_tiny_model(tmp_path / "model")
    run_until("export", model, _gptq(correction), tmp_path, **SMALL)
    assert transformed == [0, 1]


def _stream_error(left: Left) -> float:
    """How far what the quantized blocks make of the training samples is from what the original ones do."""
    run = left.run
    _, stream = _moments(left, corrected=True)
    streams = Streams(run.model, _windows(left), quantized=False)
    for block in range(run.model.blocks):
        with open_block(run, streams, block) as opened:
            opened.advance()
    return _relative(torch.cat(stream), torch.cat(streams.hidden_states.batches(ORIGINAL)))


def test_a_correction_lowers_the_error_of_the_blocks_outputs(runs: Any) -> None:
    errors = {
        correction: [_stream_error(runs(architecture, correction)[0]) for architecture in ARCHITECTURES]
        for correction in (0.0, 1.0)
    }
    assert sum(errors[1.0]) < sum(errors[0.0])
