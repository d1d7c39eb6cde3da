"""Records hold what the whole model's linears really see."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant_engine.calibration import (
    Beginning,
    Recording,
    Split,
    capture_records,
    read_record,
    self_windows,
    split_samples,
)
from quant_engine.errors import DiskFull, NumericalInstability
from quant_engine.models import CheckpointSource, StreamedModel, model_sites, target_sites
from quant_engine.policy import Policy
from quant_engine.windows import Windows
from tests.tiny_models import write_tiny_model

QUANTILES = [0.95, 0.99]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _windows(samples: int = 10, length: int = 24) -> Tensor:
    return torch.randint(0, 512, (samples, length), generator=torch.Generator().manual_seed(2))


def _whole_model_inputs(directory: Path, windows: Tensor) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _m, args, name=name: seen.__setitem__(name, args[0].flatten(0, 1)))
    with torch.no_grad():
        model(windows)
    return seen


def _capture(directory: Path, out: Path, windows: Tensor | Windows, split: Split, **options: Any) -> StreamedModel:
    out.mkdir(exist_ok=True)
    model = StreamedModel(CheckpointSource(directory))
    sites = target_sites(model_sites(model.config, model.architecture), Policy(targets=TARGETS))
    recording = Recording(split=split, quantiles=QUANTILES, seed=0, **options)
    windows = windows if isinstance(windows, Windows) else Windows.plain(windows)
    capture_records(model, windows, sites, out, recording, on_block=lambda _: None)
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_every_site_is_recorded_as_the_whole_model_sees_it(architecture: str, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model", architecture)
    windows, split = _windows(), Split(fit=6, validation=2, test=2)
    model = _capture(directory, tmp_path / "records", windows, split)
    seen = _whole_model_inputs(directory, windows)
    for site in target_sites(model_sites(model.config, model.architecture), Policy(targets=TARGETS)):
        record = read_record(tmp_path / "records", site)
        x_TD = seen[site.readers[0]]
        torch.testing.assert_close(record.fit_FD, x_TD[: 6 * 24])
        torch.testing.assert_close(record.validation_VD, x_TD[6 * 24 : 8 * 24])
        torch.testing.assert_close(record.test_ED, x_TD[8 * 24 :])
        pooled = site.pool(torch.cat([record.fit_FD, record.validation_VD]))
        assert torch.equal(record.statistics.absmax_D, pooled.abs().amax(dim=0))
        torch.testing.assert_close(record.statistics.l2_D, pooled.norm(dim=0))
        for q in QUANTILES:
            assert torch.equal(record.statistics.quantiles[q], pooled.abs().quantile(q, dim=0))
        assert record.input_absmax == float(pooled.abs().max())


def test_capacity_bounds_every_split(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model", outliers=True)
    model = _capture(directory, tmp_path / "records", _windows(), Split(fit=6, validation=2, test=2), capacity=40)
    for site in target_sites(model_sites(model.config, model.architecture), Policy(targets=TARGETS)):
        record = read_record(tmp_path / "records", site)
        assert [len(part) for part in (record.fit_FD, record.validation_VD, record.test_ED)] == [40, 40, 40]
        assert record.statistics.tokens == 8 * 24 * site.tied


@pytest.mark.parametrize("together", [1, 5])
def test_padding_is_in_no_record(together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of several lengths, padded with a token that drives a channel to hundreds of times the median."""
    monkeypatch.setattr("quant_engine.calibration.capture.BATCH_TOKENS", 24 * together)
    directory = write_tiny_model(tmp_path / "model", outliers=True)
    ids, lengths = _windows(), torch.tensor([24, 3, 9, 24, 17, 2, 24, 5, 11, 4])
    valid = torch.arange(24) < lengths[:, None]
    windows = Windows(ids_ST=ids.where(valid, 43), valid_ST=valid, predicted_ST=valid)
    split = Split(fit=6, validation=2, test=2)
    model = _capture(directory, tmp_path / "records", windows, split)
    seen = _whole_model_inputs(directory, windows.ids_ST)
    for site in target_sites(model_sites(model.config, model.architecture), Policy(targets=TARGETS)):
        record = read_record(tmp_path / "records", site)
        x_STD = seen[site.readers[0]].unflatten(0, (10, 24))
        parts = [x_STD[part][valid[part]] for part in (slice(0, 6), slice(6, 8), slice(8, 10))]
        torch.testing.assert_close(record.fit_FD, parts[0])
        torch.testing.assert_close(record.validation_VD, parts[1])
        torch.testing.assert_close(record.test_ED, parts[2])
        pooled = site.pool(torch.cat([record.fit_FD, record.validation_VD]))
        assert record.statistics.tokens == int(lengths[:8].sum()) * site.tied
        assert torch.equal(record.statistics.absmax_D, pooled.abs().amax(dim=0))
        assert torch.equal(record.statistics.quantiles[0.95], pooled.abs().quantile(0.95, dim=0))


def test_every_split_holds_a_first_position_however_few_tokens_it_keeps(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    windows, split = _windows(), Split(fit=8, validation=1, test=1)
    model = _capture(directory, tmp_path / "records", windows, split, capacity=2)
    seen = _whole_model_inputs(directory, windows)
    for site in target_sites(model_sites(model.config, model.architecture), Policy(targets=TARGETS)):
        record = read_record(tmp_path / "records", site)
        firsts = seen[site.readers[0]].unflatten(0, (10, 24))[:, 0]
        kept = (record.fit_FD, record.validation_VD, record.test_ED)
        for part, first in zip(kept, (firsts[:8], firsts[8:9], firsts[9:]), strict=True):
            assert torch.cdist(part, first).min() < 1e-4


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    directory = write_tiny_model(tmp_path / "model")
    with pytest.raises(DiskFull, match=r"need [\d,]+ bytes; 1,000 are free"):
        _capture(directory, tmp_path / "records", _windows(), Split(fit=6, validation=2, test=2))


def test_infinite_activations_are_named(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.layers[1].mlp.up_proj.weight.data[3] = float("inf")
    model.save_pretrained(directory)
    with pytest.raises(NumericalInstability, match=r"layers\.1\.mlp\.down_proj"):
        _capture(directory, tmp_path / "records", _windows(), Split(fit=6, validation=2, test=2))


@pytest.mark.parametrize(
    ("samples", "holdout", "expected"),
    [(256, 0.2, (164, 41, 51)), (4, 0.2, (2, 1, 1)), (4, 0.99, (1, 1, 2)), (5, 0.01, (3, 1, 1))],
)
def test_splits_leave_no_part_empty(samples: int, holdout: float, expected: tuple[int, int, int]) -> None:
    split = split_samples(samples, holdout)
    assert (split.fit, split.validation, split.test) == expected


def test_its_own_text_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    source = CheckpointSource(write_tiny_model(tmp_path))
    beginning = Beginning((7, 3), ("a", "b"))
    windows = self_windows(source, samples=6, sequence_length=12, seed=0, beginning=beginning)
    assert windows.ids_ST.shape == (6, 12)
    assert windows.ids_ST[:, :2].tolist() == [[7, 3]] * 6
    assert len(windows.ids_ST[:, 2:].unique(dim=0)) > 3
    assert windows.predicted_ST.tolist() == [[False] * 2 + [True] * 10] * 6
    assert windows.special_tokens == ("a", "b")
    # Sampled behind both tokens: the model finds it likely after them.
    model = AutoModelForCausalLM.from_pretrained(source.directory).eval()
    swapped = torch.cat([windows.ids_ST[:, :2], _windows(6, 10)], dim=1)
    with torch.no_grad():
        own, other = (model(ids, labels=ids).loss for ids in (windows.ids_ST, swapped))
    assert own < other


def test_the_model_writes_its_own_text_the_same_for_the_same_seed(tmp_path: Path) -> None:
    source = CheckpointSource(write_tiny_model(tmp_path))
    first, again, other = (self_windows(source, samples=6, sequence_length=12, seed=seed).ids_ST for seed in (0, 0, 1))
    assert first.shape == (6, 12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # A likely continuation: the model's own text is less surprising to it than random tokens are.
    model = AutoModelForCausalLM.from_pretrained(source.directory).eval()
    with torch.no_grad():
        assert model(first, labels=first).loss < model(_windows(6, 12), labels=_windows(6, 12)).loss
