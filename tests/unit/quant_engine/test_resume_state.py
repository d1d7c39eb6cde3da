"""A state is whole or absent, the latest alone, and gives back the same bits in whatever batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quant_engine.errors import DiskFull
from quant_engine.resume_state import State, StateFile, by_window, check_disk, in_batches, remove_states

CPU = torch.device("cpu")


def _hidden(windows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(windows, 5, 3, generator=torch.Generator().manual_seed(windows)).to(dtype)


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@given(
    windows=st.integers(1, 12),
    before=st.integers(1, 12),
    after=st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_windows_come_back_in_other_batches(
    windows: int, before: int, after: int, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("states")
    hidden_STD = _hidden(windows, dtype)
    StateFile(directory).keep(4, by_window("a", hidden_STD.split(before)) | by_window("b", [-hidden_STD]))
    state = StateFile(directory).read()
    assert state is not None
    assert state.done == 4
    sizes = [len(part) for part in hidden_STD.split(after)]
    for name, expected_STD in (("a", hidden_STD), ("b", -hidden_STD)):
        batches = in_batches(state, name, sizes, CPU)
        assert [len(batch) for batch in batches] == sizes
        assert all(batch.dtype is dtype for batch in batches)
        assert torch.equal(torch.cat(batches), expected_STD)


def test_what_is_read_back_lies_as_what_was_computed_lies(tmp_path: Path) -> None:
    """Kernels may choose by alignment: 64 bytes, as torch allocates, where a file has 8."""
    states = StateFile(tmp_path)
    states.keep(1, {"odd": torch.zeros(3, dtype=torch.int8), **by_window("hidden", [_hidden(7)])})
    state = states.read()
    assert state is not None
    for batch in in_batches(state, "hidden", [2, 2, 3], CPU):
        assert batch.is_contiguous()
        assert batch.data_ptr() % 64 == 0
        assert batch.untyped_storage().nbytes() == batch.nbytes


def test_the_latest_is_kept_alone(tmp_path: Path) -> None:
    states, other = StateFile(tmp_path), StateFile(tmp_path, "other")
    assert states.read() is None
    other.keep(9, {})
    for done in (1, 2, 10):
        states.keep(done, {"done": torch.tensor(done)})
        assert _names(tmp_path) == ["other-000009.state", f"pass-{done:06d}.state"]
    state = StateFile(tmp_path).read()
    assert state is not None
    assert (state.done, int(state.tensors["done"])) == (10, 10)
    assert states.more_bytes(100) == 100
    assert StateFile(tmp_path, "third").more_bytes(100) == 200


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_a_kill_as_a_state_is_put_in_place_leaves_a_whole_one(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = StateFile(tmp_path)
    states.keep(1, {"done": torch.tensor(1)})
    replace = Path.replace

    def killed(path: Path, target: Path) -> Any:
        if moment == "behind":
            replace(path, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            states.keep(2, {"done": torch.tensor(2)})
    assert len(_names(tmp_path)) == 2
    state = states.read()
    assert state is not None
    assert state.done == int(state.tensors["done"]) == {"before": 1, "behind": 2}[moment]
    states.keep(3, {})
    assert {name for name in _names(tmp_path) if name.endswith(".state")} == {"pass-000003.state"}


@pytest.mark.parametrize("left", [0, 4, 60])
def test_a_state_that_lost_its_end_is_passed_over(left: int, tmp_path: Path) -> None:
    """As a machine without power may leave it."""
    states = StateFile(tmp_path)
    states.keep(1, by_window("hidden", [_hidden(4)]))
    whole = (tmp_path / "pass-000001.state").read_bytes()
    (tmp_path / "pass-000002.state").write_bytes(whole[:left])
    state = states.read()
    assert state is not None
    assert state.done == 1
    (tmp_path / "pass-000001.state").unlink()
    assert states.read() is None


def test_a_state_is_read_while_the_next_one_takes_its_place(tmp_path: Path) -> None:
    states, hidden_STD = StateFile(tmp_path), _hidden(4)
    states.keep(1, by_window("hidden", [hidden_STD]))
    state = states.read()
    assert state is not None
    states.keep(2, by_window("hidden", [hidden_STD + 1]))
    assert torch.equal(in_batches(state, "hidden", [4], CPU)[0], hidden_STD)


def test_states_that_cost_more_than_their_share_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("quant_engine.resume_state.time.monotonic", lambda: clock)
    replace = Path.replace

    def slow(path: Path, target: Path) -> Any:
        nonlocal clock
        clock += 1.0
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", slow)
    states = StateFile(tmp_path, share=0.1)
    kept = []
    for done in range(1, 30):
        clock += 2.0
        states.keep(done, {})
        state = states.read()
        assert state is not None
        kept.append(state.done)
    assert sorted(set(kept)) == [1, 6, 11, 16, 21, 26]


def test_only_states_are_removed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    StateFile(tmp_path / "below").keep(1, {})
    (tmp_path / "a.safetensors").write_bytes(b"")
    remove_states(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.safetensors"]


def test_too_little_disk_is_foreseen(tmp_path: Path) -> None:
    check_disk(tmp_path, 1, "The states")
    with pytest.raises(DiskFull, match=r"The states need 9,000,000,000,000,000,000 bytes; [\d,]+ are free"):
        check_disk(tmp_path, 9 * 10**18, "The states")


def test_a_batch_of_a_state_without_its_window_is_an_error() -> None:
    with pytest.raises(KeyError):
        in_batches(State(1, {}), "hidden", [1], CPU)
