"""Shards: cut at the limit, complete, and never more than one in memory."""

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from quant_engine.checkpoint import ExportedModel, write_checkpoint
from quant_engine.errors import DiskFull
from quant_engine.model_files import ModelFiles

Parts = list[Callable[[], dict[str, Tensor]]]
_KILO = 256
"""Numbers in a kibibyte of fp32."""


class Meter:
    """Counts the bytes of the tensors that it made and that are still alive."""

    def __init__(self) -> None:
        self._alive: dict[int, int] = {}
        self._made = 0
        self.peak = 0

    def tensor(self, kibibytes: int) -> Tensor:
        self._made += 1
        number, tensor = self._made, torch.full((kibibytes * _KILO,), float(self._made))
        self._alive[number] = tensor.nbytes
        weakref.finalize(tensor, self._alive.pop, number)
        self.peak = max(self.peak, sum(self._alive.values()))
        return tensor

    def part(self, prefix: str, sizes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
        return lambda: {f"{prefix}.{index}": self.tensor(size) for index, size in enumerate(sizes)}


def _write(directory: Path, parts: Parts, shard_bytes: int) -> list[int]:
    source = directory.parent / "source"
    source.mkdir(exist_ok=True)
    model = ExportedModel(source=ModelFiles(source), config={}, linears=[], dense=["lm_head"], dtype=torch.float32)
    directory.mkdir()
    done: list[int] = []
    write_checkpoint(directory, model, parts, on_part=done.append, shard_bytes=shard_bytes)
    return done


def test_a_small_checkpoint_is_one_file(tmp_path: Path) -> None:
    meter = Meter()
    done = _write(tmp_path / "out", [meter.part("ends", (1,)), meter.part("block0", (2, 3))], 2**20)
    assert sorted(load_file(tmp_path / "out" / "model.safetensors")) == ["block0.0", "block0.1", "ends.0"]
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert done == [1, 2, 3]  # the last is what is online


def test_shards_are_cut_at_the_limit_and_indexed(tmp_path: Path) -> None:
    meter, out = Meter(), tmp_path / "out"
    parts = [meter.part("ends", (7,)), *(meter.part(f"block{block}", (1, 2, 1)) for block in range(4))]
    _write(out, parts, 4 * 1024)
    files = sorted(out.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]
    held = {path.name: load_file(path) for path in files}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    # One tensor is larger than the limit and stands alone.
    assert sizes == [7 * 1024, *[4 * 1024] * 4]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    assert len(index["weight_map"]) == 1 + 4 * 3
    values = [
        float(tensor[0]) for name in sorted(index["weight_map"]) for tensor in [held[index["weight_map"][name]][name]]
    ]
    assert sorted(values) == [float(i) for i in range(1, 14)]
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("blocks", [4, 16])
def test_no_more_than_a_shard_and_a_part_is_ever_in_memory(blocks: int, tmp_path: Path) -> None:
    meter = Meter()
    _write(tmp_path / "out", [meter.part(f"block{block}", (3, 3)) for block in range(blocks)], 8 * 1024)
    assert meter.peak <= (8 + 6) * 1024


def test_an_interrupted_export_starts_again_to_the_same_bytes(tmp_path: Path) -> None:
    def parts(*, cut: bool) -> Parts:
        meter = Meter()
        whole: Parts = [meter.part(f"block{block}", (3, 3)) for block in range(3)]

        def broken() -> dict[str, Tensor]:
            raise KeyboardInterrupt

        return [*whole[:2], broken] if cut else whole

    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "cut", parts(cut=True), 4 * 1024)
    assert not list((tmp_path / "cut").glob("model*"))  # nothing that could be taken for a checkpoint
    for name in ("again", "straight"):
        _write(tmp_path / name, parts(cut=False), 4 * 1024)
    assert dict(_contents(tmp_path / "again")) == dict(_contents(tmp_path / "straight"))


def test_a_disk_without_room_for_a_shard_is_told_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DiskFull, match=r"needs 2,048 bytes; 1,000 are free"):
        _write(tmp_path / "out", [Meter().part("block0", (2,))], 2**20)
    assert list((tmp_path / "out").iterdir()) == []


def _contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    return ((path.name, path.read_bytes()) for path in directory.iterdir())
