"""Store on disk how far a pass over the blocks has come, so that a killed run continues from there.

Hidden states are stored unchanged, in their own type, and are never computed a second time: the earlier blocks were
measured with exactly these values (docs/decisions/0016). One file holds one state. The next state is written under a
temporary name and renamed, and only then is the previous one removed. So a kill at any moment leaves a complete state.
For a short time there are two states on the disk.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

import logging
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant_engine.atomic_write import atomic_write
from quant_engine.errors import DiskFull, disk_full_as_error

logger = logging.getLogger(__name__)

SUFFIX: Final = ".state"
"""Suffix of state files; they exist only while their stage is running."""


@dataclass(frozen=True, eq=False)
class State:
    """The stored state after the first ``done`` units. The tensors are memory-mapped: copy those that must last."""

    done: int
    tensors: dict[str, Tensor]


class StateFile:
    """The latest state of one pass.

    Args:
        directory: that of the running stage; its states are removed when it is complete (:func:`remove_states`).
        name: of the pass, where a stage makes more than one.
        share: the part of the time that may be spent on states; a state that would cost more is not written. None
            writes every state.
    """

    def __init__(self, directory: Path, name: str = "pass", *, share: float | None = None) -> None:
        self.directory, self._name, self._share = directory, name, share
        # No state has been written yet, so the first one is always due.
        self._cost, self._kept_at = 0.0, -math.inf

    def read(self) -> State | None:
        """Return the latest readable state, or None.

        A state that can not be read is skipped: a machine that lost power may leave one, and its content can be
        computed again.
        """
        # A kill between the rename and the removal leaves two states; the newer one counts.
        for done, path in sorted(self._paths().items(), reverse=True):
            try:
                return State(done, load_file(path))
            except (SafetensorError, OSError):
                logger.warning("%s can not be read; it is skipped.", path.name)
        return None

    def keep(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Store the state after the first ``done`` units, and remove the previous state.

        Raises:
            DiskFull: the disk filled up.
        """
        began = time.monotonic()
        if self._share is not None and (began - self._kept_at) * self._share < self._cost:
            return
        path = self.directory / f"{self._name}-{done:06d}{SUFFIX}"
        with disk_full_as_error("the state after a block"), atomic_write(path) as temporary:
            save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, temporary)
        # Only now that the new state is complete may the older one be removed.
        for number, older in self._paths().items():
            if number != done:
                older.unlink()
        self._kept_at = time.monotonic()
        self._cost = max(self._cost, self._kept_at - began)

    def more_bytes(self, state: int) -> int:
        """Return how many more bytes of disk states of ``state`` bytes need.

        The previous state is removed only when the next one is complete, so there are two for a moment.
        """
        return (1 if self._paths() else 2) * state

    def _paths(self) -> dict[int, Path]:
        paths = self.directory.glob(f"{self._name}-*{SUFFIX}")
        return {int(path.stem.rpartition("-")[2]): path for path in paths}


def remove_states(directory: Path) -> None:
    """Remove every state below ``directory``, whose stage is complete."""
    for path in directory.rglob(f"*{SUFFIX}"):
        path.unlink()


def by_window(name: str, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the windows [T, D] of batches [B, T, D], each under its own name.

    A resumed run can then read them in batches of another size.
    """
    windows = (window_TD for batch_BTD in batches for window_TD in batch_BTD)
    return {f"{name}.{index:06d}": window_TD for index, window_TD in enumerate(windows)}


def in_batches(state: State, name: str, sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return the tensors that :func:`by_window` named as batches [B, T, D], one for each B of ``sizes``.

    They are copied to new memory on ``device``. An allocation is aligned, a tensor within a file need not be, and
    kernels may be chosen by alignment.
    """
    batches, first = [], 0
    for size in sizes:
        windows = [state.tensors[f"{name}.{index:06d}"] for index in range(first, first + size)]
        batches.append(torch.stack(windows).to(device))
        first += size
    return batches


def check_disk(directory: Path, needed: int, what: str) -> None:
    """Check that the disk of ``directory`` has ``needed`` free bytes for ``what``.

    Raises:
        DiskFull: it has fewer; the message has both numbers.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DiskFull(
            detail=f"{what} need {needed:,} bytes; {free:,} are free.",
            hint="Free some space, use fewer samples or shorter sequences, or target fewer layers.",
        )
