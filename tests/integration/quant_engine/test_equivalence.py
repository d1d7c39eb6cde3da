"""Every transform, unquantized, leaves the whole model's logits as they were: fp32, relative error below 1e-5."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quant_engine.checkpoint import OnlineInput, attach_online
from quant_engine.errors import NumericalInstability
from quant_engine.models import StreamedModel
from quant_engine.policy import Policy, TransformKind
from quant_engine.stages.context.run import Run
from quant_engine.stages.quantize.block_files import (
    Plans,
    block_path,
    stored_weights,
    transformed_block,
    unfused_rows,
)
from quant_engine.stages.quantize.stage import quantized_block
from quant_engine.training.learnable import plan_weights
from tests.integration.quant_engine.helpers import (
    ALL_LINEARS,
    fixed_ids,
    open_run,
    random_plans,
    streamed_logits,
)
from tests.tiny_models import ARCHITECTURES, write_tiny_model

KINDS = [kind for kind in TransformKind if kind is not TransformKind.NONE]


def _relative_difference(run: Run, plans: Plans) -> float:
    """Of the logits of the transformed and of the original model."""

    def prepare(layer: nn.Module, block: int) -> None:
        prefix = run.model.architecture.block_prefix(block)
        for site in run.sites:
            if site.block == block:
                for reader in site.readers:
                    linear = layer.get_submodule(reader.removeprefix(prefix))
                    attach_online(linear, OnlineInput(primitives=plans[site.name].online))

    ids = fixed_ids(vocabulary=run.model.config.vocab_size)
    original = streamed_logits(StreamedModel(run.source), ids)
    transformed = streamed_logits(run.model, ids, lambda block: transformed_block(run, block, plans), prepare)
    return float((transformed - original).norm() / original.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transforms_leave_the_logits_alone(architecture: str, kind: TransformKind, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path, architecture, layers=2)
    run = open_run(directory, Policy(targets=ALL_LINEARS), tmp_path)
    assert len(run.sites) == 8
    assert _relative_difference(run, random_plans(run, kind)) < 1e-5


@pytest.mark.parametrize("targets", [("q_proj",), ("up_proj", "o_proj"), ("down_proj",)])
def test_linears_that_are_not_targeted_follow_a_fused_scale(targets: tuple[str, ...], tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path, "qwen2"), Policy(targets=targets), tmp_path)
    assert _relative_difference(run, random_plans(run)) < 1e-5


def test_the_difference_is_seen_when_a_rotation_is_left_out(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path), Policy(targets=("down_proj",)), tmp_path)
    plans = random_plans(run)
    ids = fixed_ids()
    original = streamed_logits(run.model, ids)
    without = streamed_logits(run.model, ids, lambda block: transformed_block(run, block, plans))
    assert float((without - original).norm() / original.norm()) > 1e-2


def test_learned_clips_of_weights_follow_rows_that_are_permuted(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path), Policy(targets=ALL_LINEARS), tmp_path)
    plans = random_plans(run, TransformKind.ROTATION)
    site = next(each for each in run.sites if each.role == "feed_forward_input")
    linears = run.site_weights(site)
    clip_O1 = torch.linspace(0.4, 1.0, sum(len(w_OI) for w_OI in linears))[:, None]
    plans[site.name] = replace(plans[site.name], weight_clip_OG=clip_O1)
    block_path(tmp_path, 0).parent.mkdir(exist_ok=True)
    save_file(quantized_block(run, 0, plans, transformed_block(run, 0, plans), {}), block_path(tmp_path, 0))
    stored = stored_weights(run, tmp_path, 0, plans)
    expected = plan_weights(linears, plans[site.name], run.settings[site.name])
    found = unfused_rows(run, 0, plans, stored)
    for name, w_OI in zip(site.readers, expected, strict=True):
        assert torch.equal(found[f"{name}.weight"], w_OI)
        assert not torch.equal(stored[f"{name}.weight"], w_OI)


@pytest.mark.model
def test_transforms_leave_smollm2_alone(smollm2: Path, tmp_path: Path) -> None:
    run = open_run(smollm2, Policy(targets=ALL_LINEARS), tmp_path)
    assert _relative_difference(run, random_plans(run)) < 1e-5


def test_fusing_refuses_scales_that_are_not_tied(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path), Policy(targets=("o_proj",)), tmp_path)
    plans = {
        name: plan.with_scales(torch.arange(1.0, 65.0), "absmax")
        for name, plan in random_plans(run, TransformKind.SMOOTH).items()
    }
    with pytest.raises(NumericalInstability, match="differ between heads"):
        transformed_block(run, 0, plans)
