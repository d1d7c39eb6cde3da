"""How a long computation is carried out: what it keeps for a resumed run, and how much of it is in memory at a time.

What is computed does not depend on it, apart from rounding: a row of a smaller product may round otherwise.
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
        states: where the latest state is kept, and where an earlier attempt may have left one. None keeps nothing.
        low_memory: whether to hold as little as possible at a time: one window goes through a block, hidden states lie
            in the memory of the CPU, and activations are computed a second time for their gradients. It is slower.
    """

    states: StateFile | None = None
    low_memory: bool = False

    def together(self, usual: int) -> int:
        """How many windows to compute with at a time, where ``usual`` many are fast."""
        return 1 if self.low_memory else usual

    def place(self, device: torch.device) -> torch.device:
        """Where hidden states lie while ``device`` computes. Copies are exact."""
        return torch.device("cpu") if self.low_memory else device

    @property
    def recomputes_activations(self) -> bool:
        """Whether a training computes activations again for their gradients. The bits are the same."""
        return self.low_memory

    def latest(self) -> State | None:
        """The state that an earlier attempt left; None where there is none."""
        return None if self.states is None else self.states.read()

    def keep(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what follows the first ``done`` units of work.

        Raises:
            DiskFull: the disk filled up.
        """
        if self.states is not None:
            self.states.keep(done, tensors)

    def more_bytes(self, state: int) -> int:
        """How much more disk states of ``state`` bytes will take."""
        return 0 if self.states is None else self.states.more_bytes(state)


IN_MEMORY: Final = Execution()
"""Nothing is kept, and batches have their usual size."""
