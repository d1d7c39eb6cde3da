"""A model directory of links, FIFOs, sockets, devices and gigabyte files: refused at once, and nothing published."""

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from quant_engine.errors import EngineError
from quant_engine.policy import Policy
from tests.integration.quant_engine.runs import policy_of, run_policy, small
from tests.tiny_models import write_tiny_model
from tests.unit.quant_engine.model_files.planted import PLANTS, SECRET

_QUANTIZE = policy_of(preset="rtn-w4a4")
_EVALUATE = policy_of(preset="evaluate")
_SECONDS = 10.0


def _refusal(model: Path, policy: Policy, out: Path, **fields: Any) -> EngineError:
    began = time.monotonic()
    with pytest.raises(EngineError) as refused:
        run_policy(model, policy, out, **(small(perplexity=True) | fields))
    assert time.monotonic() - began < _SECONDS
    assert refused.value.category == "user"
    # Refused in ``load``, before anything was computed.
    assert not (out / "output").exists()
    assert not (out / "work" / "calibrate").exists()
    stored = (path.read_bytes() for path in (out / "work").rglob("*") if path.is_file())
    assert not any(SECRET in content for content in stored)
    return refused.value


@pytest.mark.parametrize("kind", sorted(PLANTS))
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "config.json", "model.safetensors"])
def test_what_is_no_file_of_the_model_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    PLANTS[kind](model / name)
    assert name in _refusal(model, _QUANTIZE, tmp_path).detail


@pytest.mark.parametrize("kind", ["link out", "fifo", "gigabyte"])
@pytest.mark.parametrize("policy", [_QUANTIZE, _EVALUATE], ids=["quantize", "evaluate"])
@pytest.mark.parametrize("name", ["NOTICE.txt", "README.md", "tokenizer.json"])
def test_a_model_that_is_only_measured_is_read_as_carefully(
    kind: str, name: str, policy: Policy, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    PLANTS[kind](model / name)
    assert name in _refusal(model, policy, tmp_path).detail


@pytest.mark.parametrize("policy", [_QUANTIZE, _EVALUATE], ids=["quantize", "evaluate"])
def test_broken_generation_settings_are_refused_first(policy: Policy, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "generation_config.json").write_text("{not json")
    assert "generation_config.json is not JSON" in _refusal(model, policy, tmp_path).detail


def test_a_model_of_allowed_links_is_copied_and_told_as_it_was_done(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "blobs" / "model")
    (model / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.9, "top_p": 0.6}')
    linked = tmp_path / "model"
    linked.mkdir()
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    assert "QUANTRY_MODEL_LINK_DIRS" in _refusal(linked, _QUANTIZE, tmp_path / "refused").hint

    policy = policy_of(preset="rtn-w4a4", targets=["down_proj"], ignore=["lm_head"])
    result = run_policy(linked, policy, tmp_path, link_dirs=(tmp_path / "blobs",), **small())
    checkpoint, report = result.checkpoint_dir, result.report
    assert checkpoint is not None
    assert not any(path.is_symlink() for path in checkpoint.iterdir())
    assert (checkpoint / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert report["done"]["quantized"] == {"down_proj": len(result.layers)}
    assert report["done"]["dense"]["lm_head"] == 1
    assert report["changed_files"] == [
        "generation_config.json: removed temperature and top_p, because do_sample is false"
    ]
    assert "removed temperature and top\\_p, because do\\_sample is false" in (checkpoint / "README.md").read_text()
    assert GenerationConfig.from_pretrained(checkpoint).to_diff_dict().keys() <= {"do_sample", "transformers_version"}
