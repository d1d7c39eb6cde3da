"""How a long computation runs: which states it stores for a resumed run, and how much it holds in memory at a time.

The result does not depend on it, except for rounding: a row of a smaller matrix product may round differently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.resume_state import State, StateFile


@dataclass(frozen=True, kw_only=True, eq=False)
class Execution:
    """Resuming and batching of one pass over the blocks, or of one training.

    Attributes:
        states: where the latest state is stored, and where an earlier attempt may have stored one. None stores none.
        low_memory: whether to hold as little as possible at a time: one window goes through a block, hidden states are
            in the memory of the CPU, and activations are computed a second time for their gradients. It is slower.
    """

    states: StateFile | None = None
    low_memory: bool = False

    def together(self, usual: int) -> int:
        """Return how many windows to compute with at a time; ``usual`` is the fast number."""
        return 1 if self.low_memory else usual

    def place(self, device: torch.device) -> torch.device:
        """Return where hidden states are stored while ``device`` computes. Copies are exact."""
        return torch.device("cpu") if self.low_memory else device

    @property
    def recomputes_activations(self) -> bool:
        """Whether a training computes activations again for their gradients. The results have the same bits."""
        return self.low_memory

    def latest(self) -> State | None:
        """Return the state that an earlier attempt stored, or None."""
        return None if self.states is None else self.states.read()

    def keep(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Store the state after the first ``done`` units of work.

        Raises:
            DiskFull: the disk filled up.
        """
        if self.states is not None:
            self.states.keep(done, tensors)

    def more_bytes(self, state: int) -> int:
        """Return how many more bytes of disk states of ``state`` bytes will need."""
        return 0 if self.states is None else self.states.more_bytes(state)


IN_MEMORY: Final = Execution()
"""Stores no state, and uses batches of the usual size."""
