"""The code that a card prints works as it is printed, and the facts in it are the run's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from quant_engine.checkpoint import ActivationGrid
from quant_engine.checkpoint.hashes import changed_files
from quant_engine.policy import Policy, TransformKind, policy_hash
from quant_engine.stages.export import CHECKPOINT, export_stage
from quant_engine.stages.quantize.stage import quantize_stage
from quant_engine.stages.report.card_inputs import Measured
from quant_engine.stages.stage import run_stage
from tests.integration.quant_engine.exports import every_linear, export, in_memory_logits, logits_of, online_plans
from tests.integration.quant_engine.helpers import open_run, random_plans
from tests.integration.quant_engine.runs import policy_of, run_until, small
from tests.tiny_models import write_tiny_model

_PLANS = {
    "universal": lambda run: random_plans(run, TransformKind.SMOOTH),
    "rotated": random_plans,
    "loader": lambda run: online_plans(run, "kronecker"),
}


@pytest.mark.parametrize("plans_of", _PLANS.values(), ids=_PLANS)
def test_the_printed_code_loads_the_quantized_model(
    plans_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(write_tiny_model(tmp_path / "model", dtype=torch.bfloat16), every_linear(), tmp_path)
    plans = plans_of(run)
    quantized, checkpoint = export(run, plans)
    printed = re.findall(r"```python\n(.*?)\n```", (checkpoint / "README.md").read_text(), re.DOTALL)
    assert len(printed) == 1
    monkeypatch.chdir(checkpoint)
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(printed[0], names)  # noqa: S102  # the very text of the card
    assert capsys.readouterr().out.startswith("The capital of France is")
    # The code of a checkpoint with nothing online is that of plain transformers, with its grid.
    plain = "AutoModelForCausalLM" in printed[0]
    grid = ActivationGrid.COMPRESSED_TENSORS if plain else ActivationGrid.ENGINES
    assert torch.equal(logits_of(names["model"]), in_memory_logits(run, plans, quantized, grid))
    assert changed_files(checkpoint) == []


def test_a_card_says_what_the_run_found(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004")
    (model / "NOTICE").write_text("Names.")
    policy = policy_of(preset="smoothrot-w4a4")
    fields = small(perplexity=True) | {"model_id": "owner/tiny", "revision": "a" * 40}
    told = run_until("verify", model, policy, tmp_path, **fields)
    checkpoint = tmp_path / "work" / "export" / CHECKPOINT
    card = ModelCard.load(checkpoint / "README.md")
    assert (card.data.base_model, card.data.license) == ("owner/tiny", "apache-2.0")
    assert all(f"| `{row['name']}` |" in card.text for row in told.rows)
    data = json.loads((checkpoint / "quantry.json").read_text())
    assert data["layers"] == told.rows
    assert data["policy_hash"] == policy_hash(policy)
    metrics = {event[1]: event[2] for event in told.events if event[0] == "metric"}
    assert metrics == {
        f"perplexity.{name}": data["perplexity"][name] for name in ("original", "quantized", "compressed_tensors")
    }
    # The second figure stands on the card with its reason.
    assert f"its perplexity is {metrics['perplexity.compressed_tensors']:.6g}" in card.text
    assert (data["perplexity"]["dataset"], data["calibration"]["dataset"]) == ("inline", "inline")
    assert data["model"]["revision"] == "a" * 40
    assert changed_files(checkpoint) == []
    assert {"LICENSE", "NOTICE", "layers.png"} <= {file["path"] for file in data["files"]}
    # Whoever has the texts keeps them: the card may be published.
    texts = fields["calibration"].dataset.texts
    assert texts[0][:40] not in (checkpoint / "quantry.json").read_text() + card.text


def test_the_export_is_made_again_when_what_its_card_says_changes(tmp_path: Path) -> None:
    run = open_run(write_tiny_model(tmp_path / "model"), Policy(), tmp_path)
    plans = random_plans(run)
    quantized = run_stage(quantize_stage(run, plans, [], run.work_dir, "-"), run.work_dir, run.observer)

    def exported(measured: Measured) -> str:
        directory = run_stage(export_stage(run, quantized, plans, "-", measured), run.work_dir, run.observer)
        return (directory / CHECKPOINT / "quantry.json").read_text()

    def reused() -> list[bool]:
        return [event[2] for event in run.observer.events if event[:2] == ("finished", "export")]

    figure = {"perplexity": 2.0, "predicted": 9, "dtype": "float32"}
    perplexity = {"original": figure, "quantized": figure, "compressed_tensors": None}
    texts = [exported(Measured()), exported(Measured()), exported(Measured(perplexity=perplexity))]
    assert reused() == [False, True, False]
    assert texts[0] == texts[1] != texts[2]
    (run.spec.model_dir / "NOTICE").write_text("Names.")
    assert "NOTICE" in exported(Measured(perplexity=perplexity))
