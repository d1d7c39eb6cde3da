"""Streamed perplexity is the whole model's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant_engine.calibration import evaluation_windows
from quant_engine.errors import NumericalInstability
from quant_engine.evaluation import perplexity as room
from quant_engine.models import CheckpointSource, StreamedModel
from tests.tiny_models import write_tiny_model


def _reference(directory: Path, windows: list[Tensor]) -> tuple[float, int]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    total, count = 0.0, 0
    for ids_BT in windows:
        with torch.no_grad():
            logits = model(ids_BT).logits[:, :-1]
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
        )
        count += ids_BT[:, 1:].numel()
    return total / count, count


def test_it_is_the_mean_over_every_predicted_token(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    ids = torch.randint(0, 512, (1000,), generator=torch.Generator().manual_seed(0))
    windows = evaluation_windows(ids, tokens=700, sequence_length=300)  # 2 × 300 and a rest of 100
    seen: list[int] = []
    found = room.perplexity(StreamedModel(CheckpointSource(directory)), windows, on_block=lambda: seen.append(1))
    mean, count = _reference(directory, windows)
    assert found.predicted == count == 2 * 299 + 99
    assert found.mean_nll == pytest.approx(mean, rel=1e-6)
    assert found.perplexity == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-5)
    assert len(seen) == 2 * room.passes(windows)


def test_long_texts_take_several_passes_and_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamedModel(CheckpointSource(write_tiny_model(tmp_path)))
    ids = torch.randint(0, 512, (2048,), generator=torch.Generator().manual_seed(0))
    windows = evaluation_windows(ids, tokens=2048, sequence_length=64)
    once = room.perplexity(model, windows, on_block=lambda: None)
    monkeypatch.setattr(room, "PASS_TOKENS", 1024)
    assert room.passes(windows) == 2
    assert room.perplexity(model, windows, on_block=lambda: None) == once


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(directory)
    windows = [torch.arange(16)[None]]
    with pytest.raises(NumericalInstability, match="negative log-likelihood is nan"):
        room.perplexity(StreamedModel(CheckpointSource(directory)), windows, on_block=lambda: None)
