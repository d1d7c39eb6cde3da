"""What a policy means for a concrete model: overrides, widths, quantiles."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from quant_engine.errors import InsufficientMemory, NoMatchingLayer, UnsupportedArchitecture, UnsupportedPolicy
from quant_engine.models import CheckpointSource
from quant_engine.policy import Calibration, Policy
from quant_engine.stages.context.run import prepare_run
from quant_engine.stages.context.statistics import quantiles_of
from quant_engine.stages.load import check_memory
from quant_engine.stages.plan_files import plan_fields, read_plan, write_plan
from tests.integration.quant_engine.helpers import (
    ALL_LINEARS,
    RecordingObserver,
    open_run,
    random_plans,
    run_spec,
)
from tests.tiny_models import write_tiny_model


def _policy(**fields: Any) -> Policy:
    return Policy.model_validate({"targets": ALL_LINEARS} | fields)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def test_overrides_apply_in_order_field_by_field(model_dir: Path, tmp_path: Path) -> None:
    overrides = [
        {"match": "down_proj", "weights": {"format": "int8"}},
        {"match": r"re:.*layers\.1\..*", "activations": {"format": "int8"}},
        {"match": "model.layers.1.mlp.down_proj", "weights": {"format": "int6"}, "transform": {"kind": "none"}},
    ]
    run = open_run(model_dir, _policy(overrides=overrides), tmp_path)
    first, second = (run.settings[f"model.layers.{block}.mlp.down_proj"] for block in (0, 1))
    assert (first.weights.format, first.activations.format) == ("int8", "int4")
    assert (second.weights.format, second.activations.format) == ("int6", "int8")
    assert second.transform.kind == "none"


def test_linears_that_share_an_input_share_their_settings(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPolicy, match="read the same input") as caught:
        open_run(model_dir, _policy(overrides=[{"match": "v_proj", "weights": {"format": "int8"}}]), tmp_path)
    assert "model.layers.0.self_attn.v_proj" in caught.value.detail


def test_a_group_size_has_to_divide_every_width(model_dir: Path, tmp_path: Path) -> None:
    weights = {"format": "int4", "granularity": "group", "group_size": 64}
    with pytest.raises(UnsupportedPolicy, match=r"64 does not divide the inputs of .*\(96") as caught:
        open_run(model_dir, _policy(weights=weights), tmp_path)
    # One answer that fits all of the model's widths, and every kind of site that has the wrong one.
    sizes = [int(size) for size in re.findall(r"\d+", caught.value.hint.partition("which fit")[0])]
    widths = {site.features for site in open_run(model_dir, _policy(), tmp_path).sites}
    assert sizes
    assert all(width % size == 0 for width in widths for size in sizes)


def test_a_block_size_has_to_divide_every_width(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPolicy, match="block_size"):
        open_run(model_dir, _policy(transform={"block_size": 64}), tmp_path)


def test_nothing_to_quantize_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NoMatchingLayer, match="match no linear"):
        open_run(model_dir, _policy(targets=["re:nothing"]), tmp_path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UnsupportedArchitecture, match="GPT2LMHeadModel"):
        open_run(model, _policy(), tmp_path)


def test_every_quantile_that_may_be_asked_for_is_recorded() -> None:
    policy = _policy(
        transform={"statistic": {"kind": "quantile", "q": 0.99}},
        search={"kind": "grid", "q": [0.95, 1.0]},
        overrides=[{"match": "o_proj", "transform": {"statistic": {"kind": "quantile", "q": 0.98}}}],
    )
    assert quantiles_of(policy) == [0.95, 0.98, 0.99]
    assert quantiles_of(_policy()) == []


def test_too_little_memory_is_foreseen(tmp_path: Path) -> None:
    model_dir = write_tiny_model(tmp_path / "model", max_position_embeddings=32768)
    spec = run_spec(model_dir, _policy(), calibration=Calibration(samples=65536, sequence_length=32768))
    run = prepare_run(spec, work_dir=tmp_path, observer=RecordingObserver())
    with pytest.raises(InsufficientMemory, match=r"needs about [\d,]+ bytes"):
        check_memory(run)


def test_the_memory_of_a_tuning_is_foreseen_and_can_be_spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = write_tiny_model(tmp_path / "model", hidden=256, intermediate=512, layers=6)
    spec = run_spec(model_dir, _policy(tuning={"steps": 1}), calibration=Calibration(samples=4, sequence_length=8))
    run = prepare_run(spec, work_dir=tmp_path, observer=RecordingObserver())
    weights = sum(value.numel() for value in run.model.empty_block(0).parameters()) * 4 * run.model.blocks
    # A machine that holds every weight once, which is more than a run needs that works block by block.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=weights))
    with pytest.raises(InsufficientMemory) as caught:
        check_memory(run)
    assert "policy.tuning" in caught.value.hint
    policy = spec.policy.model_copy(update={"tuning": None})
    check_memory(prepare_run(replace(spec, policy=policy), work_dir=tmp_path, observer=RecordingObserver()))


def test_plans_survive_the_disk_bit_for_bit(model_dir: Path, tmp_path: Path) -> None:
    run = open_run(model_dir, _policy(), tmp_path)
    for name, plan in random_plans(run).items():
        site = next(site for site in run.sites if site.name == name)
        write_plan(tmp_path, site, plan)
        found = read_plan(tmp_path, site)
        assert plan_fields(found) == plan_fields(plan)
        assert plan.scales_D is not None
        assert found.scales_D is not None
        assert torch.equal(found.scales_D, plan.scales_D)
        assert (found.permutation_D is None) is (site.role != "feed_forward_inner")
        if found.permutation_D is not None and plan.permutation_D is not None:
            assert torch.equal(found.permutation_D, plan.permutation_D)


def test_the_checkpoint_is_read_in_full_precision(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    run = open_run(directory, _policy(), tmp_path)
    (weight,) = run.site_weights(run.sites[1])
    assert weight.dtype == torch.float32
    assert CheckpointSource(directory).dtype == torch.bfloat16
