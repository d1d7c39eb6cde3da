"""How far a pass over the blocks has come, on disk: what the next block needs, so that a killed run goes on from there.

Chained hidden states are kept verbatim, in their own type, and never computed a second time: even where the arithmetic
is the same, what was computed is what the blocks behind it were measured with. One file holds one state; the next one
is written aside, renamed, and only then is the one before removed, so that a kill at any moment leaves a whole one. For
that moment there are two on the disk.

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
"""Ends the names of files that live only while their stage is under way."""


@dataclass(frozen=True, eq=False)
class State:
    """What was kept behind the first ``done`` units; the tensors are memory-mapped, copy what is to stay."""

    done: int
    tensors: dict[str, Tensor]


class StateFile:
    """The latest state of one pass.

    Args:
        directory: of the stage that is under way; whoever publishes it removes the states (:func:`remove_states`).
        name: of the pass, where a stage makes more than one.
        share: how much of the time may go into states; one that would cost more is left out. None keeps every one.
    """

    def __init__(self, directory: Path, name: str = "pass", *, share: float | None = None) -> None:
        self.directory, self._name, self._share = directory, name, share
        self._cost, self._kept_at = 0.0, -math.inf

    def read(self) -> State | None:
        """The latest state; None where none was kept.

        One that can not be read is passed over: a machine that lost its power may leave it, and what it would save can
        be computed again.
        """
        for done, path in sorted(self._paths().items(), reverse=True):
            try:
                return State(done, load_file(path))
            except (SafetensorError, OSError):
                logger.warning("%s can not be read; it is passed over.", path.name)
        return None

    def keep(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what follows the first ``done`` units, and let go of the state before.

        Raises:
            DiskFull: the disk filled up.
        """
        began = time.monotonic()
        if self._share is not None and (began - self._kept_at) * self._share < self._cost:
            return
        path = self.directory / f"{self._name}-{done:06d}{SUFFIX}"
        with disk_full_as_error("the state behind a block"), atomic_write(path) as temporary:
            save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, temporary)
        for number, older in self._paths().items():
            if number != done:
                older.unlink()
        self._kept_at = time.monotonic()
        self._cost = max(self._cost, self._kept_at - began)

    def more_bytes(self, state: int) -> int:
        """How much more disk states of that many bytes will take: the one before stays until the next is whole."""
        return (1 if self._paths() else 2) * state

    def _paths(self) -> dict[int, Path]:
        paths = self.directory.glob(f"{self._name}-*{SUFFIX}")
        return {int(path.stem.rpartition("-")[2]): path for path in paths}


def remove_states(directory: Path) -> None:
    """Remove every state below ``directory``: its stage is complete."""
    for path in directory.rglob(f"*{SUFFIX}"):
        path.unlink()


def by_window(name: str, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The windows [T, D] of batches [B, T, D] under names of their own: they can be read back in other batches."""
    windows = (window_TD for batch_BTD in batches for window_TD in batch_BTD)
    return {f"{name}.{index:06d}": window_TD for index, window_TD in enumerate(windows)}


def in_batches(state: State, name: str, sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """What :func:`by_window` named, [B, T, D] for each B of ``sizes``, copied to memory of its own on ``device``.

    The copies begin where an allocation begins. In the file they would not, and kernels may choose by alignment.
    """
    batches, first = [], 0
    for size in sizes:
        windows = [state.tensors[f"{name}.{index:06d}"] for index in range(first, first + size)]
        batches.append(torch.stack(windows).to(device))
        first += size
    return batches


def check_disk(directory: Path, needed: int, what: str) -> None:
    """Refuse early what will not fit.

    Raises:
        DiskFull: with the needed and the free bytes.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DiskFull(
            detail=f"{what} need {needed:,} bytes; {free:,} are free.",
            hint="Free some space, use fewer samples or shorter sequences, or target fewer layers.",
        )
