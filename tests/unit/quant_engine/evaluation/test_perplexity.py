"""Streamed perplexity is the whole model's."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from quant_engine.calibration import TokenizedDocument, evaluation_windows
from quant_engine.errors import NumericalInstability
from quant_engine.evaluation import perplexity as room
from quant_engine.models import CheckpointSource, StreamedModel
from quant_engine.windows import Windows
from tests.tiny_models import write_tiny_model


def _reference(directory: Path, windows: list[Windows]) -> tuple[float, int]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    total, count = 0.0, 0
    for ids_BT in (each.ids_ST for each in windows):
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
    windows = evaluation_windows([TokenizedDocument(ids)], tokens=700, sequence_length=300)  # 2 × 300 and a rest of 100
    seen: list[int] = []
    found = room.perplexity(StreamedModel(CheckpointSource(directory)), windows, on_block=lambda: seen.append(1))
    mean, count = _reference(directory, windows)
    assert found.predicted == count == 2 * 299 + 99
    assert found.mean_nll == pytest.approx(mean, rel=1e-6)
    assert found.perplexity == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-5)
    assert len(seen) == 2 * room.passes(windows)


def test_padding_and_special_tokens_are_not_predicted(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    ids = torch.randint(0, 512, (2, 300), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(300) < torch.tensor([[300], [270]])
    special = torch.zeros(300, dtype=torch.bool)
    special[[0, 1, 280]] = True
    windows = Windows(ids_ST=ids, valid_ST=valid, predicted_ST=valid & ~special)
    found = room.perplexity(StreamedModel(CheckpointSource(directory)), [windows], on_block=lambda: None)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    total = 0.0
    with torch.no_grad():
        for index, size in ((0, 300), (1, 270)):
            chances = model(ids[index : index + 1, :size]).logits[0].double().log_softmax(-1)
            total -= sum(float(chances[t - 1, ids[index, t]]) for t in range(2, size) if t != 280)
    assert found.predicted == 297 + 268
    assert found.mean_nll == pytest.approx(total / found.predicted, rel=1e-6)


def test_long_texts_take_several_passes_and_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamedModel(CheckpointSource(write_tiny_model(tmp_path)))
    ids = torch.randint(0, 512, (2048,), generator=torch.Generator().manual_seed(0))
    windows = evaluation_windows([TokenizedDocument(ids)], tokens=2048, sequence_length=64)
    once = room.perplexity(model, windows, on_block=lambda: None)
    monkeypatch.setattr(room, "PASS_TOKENS", 1024)
    assert room.passes(windows) == 2
    assert room.perplexity(model, windows, on_block=lambda: None) == once


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(directory)
    windows = [Windows.plain(torch.arange(16)[None])]
    with pytest.raises(NumericalInstability, match="negative log-likelihood is nan"):
        room.perplexity(StreamedModel(CheckpointSource(directory)), windows, on_block=lambda: None)
