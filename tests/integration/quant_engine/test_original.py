"""``load`` compares the original with transformers and says so; an original that fails by itself is told as such."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.errors import EngineError, InvalidModel, NumericalInstability, UnsupportedArchitecture
from quant_engine.stages.load import recorded_oracle
from tests.integration.quant_engine.helpers import RecordingObserver
from tests.integration.quant_engine.runs import policy_of, run_policy, run_until, small
from tests.tiny_models import write_tiny_model


def overflowing(directory: Path) -> Path:
    """A model in fp16 that text drives beyond 65504 in its first block. In fp32 and bfloat16 it is a usual model."""
    write_tiny_model(directory, hidden=32, dtype=torch.float16)
    path = directory / "model.safetensors"
    state = load_file(path)
    for name in ("gate_proj", "up_proj"):
        state[f"model.layers.0.mlp.{name}.weight"] *= 300
    save_file(state, path, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("task", ["evaluate", "w8a8"])
def test_an_original_that_overflows_is_told_as_such_before_anything_is_computed(task: str, tmp_path: Path) -> None:
    observer = RecordingObserver()
    with pytest.raises(NumericalInstability, match="original itself, in float16, gives NaN or infinity") as caught:
        run_policy(
            overflowing(tmp_path / "model"), policy_of(preset=task), tmp_path, observer, **small(perplexity=True)
        )
    assert "bfloat16" in caught.value.hint
    assert [event[1] for event in observer.events if event[0] == "started"] == ["load"]


def test_an_original_that_is_exported_in_bfloat16_may_overflow_in_its_own_type(tmp_path: Path) -> None:
    policy = policy_of(preset="nvfp4")
    run_until("calibrate", overflowing(tmp_path / "model"), policy, tmp_path, **small())
    assert recorded_oracle(tmp_path / "work" / "load")["compared"] == "whole model"


def test_the_report_names_the_oracle(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=32)
    report = run_policy(model, policy_of(preset="w8a8"), tmp_path / "made", **small()).report
    assert report["oracle"]["compared"] == "whole model"
    assert report["oracle"]["relative_difference"] == 0.0
    exported = tmp_path / "made" / "output" / "checkpoint"
    # transformers does not load every kind of quantized checkpoint on a CPU.
    measured = run_policy(exported, policy_of(preset="evaluate"), tmp_path / "measured", **small()).report
    assert measured["oracle"] | {"transformers": ""} == {
        "compared": "none",
        "relative_difference": None,
        "transformers": "",
    }
    dense = run_policy(model, policy_of(preset="evaluate"), tmp_path / "dense", **small()).report
    assert dense["oracle"] == report["oracle"]


DEEP = "1,000 lists within one another"


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 2.0},
        {"num_hidden_layers": 10**7},
        {"hidden_size": -64},
        {"vocab_size": None},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 0},
        {"rope_parameters": [[[]]]},
        {"hidden_size": DEEP},
        {"tie_word_embeddings": "yes"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"model_type": ["llama"]},
        {"rms_norm_eps": None},
        {"max_position_embeddings": -1},
    ],
    ids=str,
)
@pytest.mark.parametrize("task", ["evaluate", "w8a8"])
def test_a_config_that_no_model_has_is_the_models_fault(fields: dict[str, Any], task: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=32)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | fields).replace(f'"{DEEP}"', "[" * 1000 + "]" * 1000))
    observer = RecordingObserver()
    with pytest.raises(EngineError) as caught:
        run_policy(model, policy_of(preset=task), tmp_path, observer, **small())
    assert isinstance(caught.value, InvalidModel | UnsupportedArchitecture)
    assert caught.value.category == "user"
    assert {event[1] for event in observer.events if event[0] == "started"} <= {"load"}
