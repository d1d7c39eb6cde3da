"""How a pass is carried out: how much is in memory at a time, and what is kept for a resumed run."""

from pathlib import Path

import torch

from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.resume_state import StateFile

META = torch.device("meta")


def test_little_memory_means_one_window_at_a_time_on_the_cpu() -> None:
    usual, frugal = Execution(), Execution(low_memory=True)
    assert (usual.together(8), frugal.together(8)) == (8, 1)
    assert (usual.place(META), frugal.place(META)) == (META, torch.device("cpu"))
    assert (usual.recomputes_activations, frugal.recomputes_activations) == (False, True)


def test_a_state_is_kept_where_there_is_a_file_for_it(tmp_path: Path) -> None:
    kept = Execution(states=StateFile(tmp_path))
    assert kept.latest() is None
    kept.keep(3, {"hidden": torch.arange(4.0)})
    state = Execution(states=StateFile(tmp_path)).latest()
    assert state is not None
    assert state.done == 3
    assert torch.equal(state.tensors["hidden"], torch.arange(4.0))
    assert kept.more_bytes(10) == 10, "the one before stays until the next is whole"


def test_nothing_is_kept_in_memory_alone() -> None:
    IN_MEMORY.keep(3, {"hidden": torch.ones(1)})
    assert IN_MEMORY.latest() is None
    assert IN_MEMORY.more_bytes(10) == 0
