"""The real runner on a device without memory for two windows: ``python -P -m tests.faults.cramped_runner``."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quant_engine.models.hidden_states import HiddenStates
from worker.runner import __main__ as runner

_init = HiddenStates.__init__


def _cramped(self: HiddenStates, model: Any, batches: Sequence[Tensor], *args: Any, **options: Any) -> None:
    if any(len(batch) > 1 for batch in batches):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    _init(self, model, batches, *args, **options)


if __name__ == "__main__":
    HiddenStates.__init__ = _cramped  # type: ignore[method-assign]  # the one edge that this program is about
    sys.exit(runner.main())
