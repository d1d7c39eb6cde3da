"""The hidden states of windows between the blocks of a streamed model, in one stream or more.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quant_engine.models.streaming import StreamedModel
from quant_engine.resume_state import State, by_window, in_batches


class HiddenStates:
    """The hidden states before the next block. At first these are the embedded windows, the same in every stream.

    Args:
        batches: token ids [B, T], in the batches that go through a block.
        names: of the streams.
        state: the result of :meth:`tensors` after some block, in these batches or in others, to continue from. A state
            without tensors is the one after the last block, after which no hidden states are needed.
        place: where the hidden states are stored; by default the device of the model. Copies are exact.
    """

    def __init__(
        self,
        model: StreamedModel,
        batches: Sequence[Tensor],
        names: Sequence[str] = ("hidden",),
        *,
        state: State | None = None,
        place: torch.device | None = None,
    ) -> None:
        self._device, self.place = model.device, place or model.device
        # After the last block nothing is computed any more, so no window has to be embedded.
        batches = () if state is not None and not state.tensors else batches
        sizes = [len(batch) for batch in batches]
        embedded: list[Tensor] = []
        self._arguments: list[list[dict[str, Any]]] = []
        for batch in batches:
            # Also with a state: the layers' other arguments are not stored and have to be built again.
            entered = model.enter(batch)
            self._arguments.append(entered.layer_arguments)
            if state is None:
                embedded.append(entered.hidden_BTD.to(self.place))
        self._hidden = {
            name: list(embedded) if state is None else in_batches(state, name, sizes, self.place) for name in names
        }

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._arguments)

    def arguments(self, block: int, batch: int) -> dict[str, Any]:
        """Return the arguments of the block's layer besides the hidden states."""
        return self._arguments[batch][block]

    def hidden(self, batch: int, name: str = "hidden") -> Tensor:
        """Return a batch's hidden states [B, T, D] on the device of the model."""
        return self._hidden[name][batch].to(self._device)

    def put(self, batch: int, hidden_BTD: Tensor, name: str = "hidden") -> None:
        """Replace a batch's hidden states by the output of the block."""
        self._hidden[name][batch] = hidden_BTD.to(self.place)

    def batches(self, name: str = "hidden") -> list[Tensor]:
        """Return every batch's hidden states on the device where they are stored."""
        return list(self._hidden[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return all hidden states, window by window, for a state."""
        return {key: each for name, batches in self._hidden.items() for key, each in by_window(name, batches).items()}


def hidden_states_bytes(model: StreamedModel, tokens: int, streams: int = 1) -> int:
    """Return how many bytes the hidden states of ``tokens`` tokens take, in memory and in a state."""
    return streams * tokens * int(model.config.hidden_size) * model.dtype.itemsize


def next_block(state: State | None) -> int:
    """Return the index of the first block that is not done yet."""
    return 0 if state is None else state.done
