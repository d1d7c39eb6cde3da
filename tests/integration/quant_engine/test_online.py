"""What ``policy.online`` leaves in an exported checkpoint, and that a searched clip is the one it runs with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quant_engine.policy import Policy
from tests.integration.quant_engine.helpers import fixed_ids
from tests.integration.quant_engine.runs import Left, gate_difference, left_by, policy_of, run_until, small
from tests.tiny_models import ARCHITECTURES, write_tiny_model

SMALL = small()


def _left(policy: Policy, architecture: str, out: Path) -> Left:
    model = write_tiny_model(out / "model", architecture)
    run_until("verify", model, policy, out, **SMALL)
    return left_by(model, policy, out, **SMALL)


def _policy(online: str, **fields: Any) -> Policy:
    """The adaptive preset chooses among kinds that are online where they may be; clips would be online too."""
    return policy_of(preset="adaptive-w4a4", online=online, **({"activations": {"clip": "none"}} | fields))


def _section(left: Left) -> dict[str, Any]:
    section: dict[str, Any] = json.loads((left.checkpoint / "config.json").read_text())["quantry"]
    return section


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_online_loads_by_transformers_alone(architecture: str, tmp_path: Path) -> None:
    """Equal logits, with Gemma 2's soft cap of the attention logits too."""
    left = _left(_policy("none"), architecture, tmp_path)
    section = _section(left)
    assert (section["online"], section["transforms"], section["reach"]) == ({}, {}, "anywhere")
    assert {plan.kind.value for plan in left.plans.values()} <= {"none", "smooth"}
    assert any(plan.scales_D is not None for plan in left.plans.values())
    model, loading = AutoModelForCausalLM.from_pretrained(left.checkpoint, dtype="auto", output_loading_info=True)
    assert not any(loading.values()), loading
    with torch.no_grad():
        assert torch.equal(model.eval()(fixed_ids()).logits, left.streamed(fixed_ids()))
    assert gate_difference(left) == 0.0


def test_the_attention_that_a_model_asks_for_is_not_passed_on(tmp_path: Path) -> None:
    """What was calibrated and measured is what has to run, whatever config.json preferred."""
    model = write_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    run_until("verify", model, _policy("none"), tmp_path, **SMALL)
    left = left_by(model, _policy("none"), tmp_path, **SMALL)
    assert "attn_implementation" not in json.loads((left.checkpoint / "config.json").read_text())
    assert gate_difference(left) == 0.0


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("kind", ["rotation", "kronecker", "duquant", "wush"])
def test_inner_leaves_transforms_inside_alone(kind: str, architecture: str, tmp_path: Path) -> None:
    policy = _policy("inner", selection=None, transform={"kind": kind, "block_size": 16})
    left = _left(policy, architecture, tmp_path)
    transformed = {name for name, entry in _section(left)["online"].items() if entry["transform"] is not None}
    leaves = {name.rpartition(".")[2] for name in transformed}
    assert leaves == {"o_proj", "down_proj"}
    assert len(transformed) == 4
    assert gate_difference(left) == 0.0


def test_a_searched_clip_is_exported_for_the_run_time(tmp_path: Path) -> None:
    left = _left(_policy("all", activations={"clip": "search"}), "llama", tmp_path)
    online = _section(left)["online"]
    exported = {
        (left.plans[site.name].clip_ratio, online.get(reader, {"clip_ratio": 1.0})["clip_ratio"])
        for site in left.run.sites
        for reader in site.readers
    }
    assert all(searched == written for searched, written in exported)
    assert any(searched is not None and searched < 1.0 for searched, _ in exported)
