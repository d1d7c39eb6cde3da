"""Windows on their way through a streamed model's blocks, in one stream of hidden states or more.

Shapes: B windows of a batch, T tokens, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quant_engine.models.streaming import StreamedModel
from quant_engine.resume_state import State, by_window, in_batches


class HiddenStates:
    """The hidden states in front of the next block; at first the embedded windows, the same in every stream.

    Args:
        batches: token ids [B, T], in the batches that go through a block.
        names: of the streams.
        state: what :meth:`tensors` gave behind some block, in these batches or in others; goes on from there. A state
            without tensors is that behind the last block, where nothing is left to go on with.
        place: where the hidden states lie; where the model computes by default. Copies are exact.
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
        batches = () if state is not None and not state.tensors else batches
        sizes = [len(batch) for batch in batches]
        embedded: list[Tensor] = []
        self._arguments: list[list[dict[str, Any]]] = []
        for batch in batches:
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
        """What the block's layer is called with beside the hidden states."""
        return self._arguments[batch][block]

    def hidden(self, batch: int, name: str = "hidden") -> Tensor:
        """A batch's hidden states [B, T, D], where the model computes."""
        return self._hidden[name][batch].to(self._device)

    def put(self, batch: int, hidden_BTD: Tensor, name: str = "hidden") -> None:
        """What the block made of a batch."""
        self._hidden[name][batch] = hidden_BTD.to(self.place)

    def batches(self, name: str = "hidden") -> list[Tensor]:
        """Every batch's hidden states, where they are held."""
        return list(self._hidden[name])

    def tensors(self) -> dict[str, Tensor]:
        """All of it, window by window: what a state keeps."""
        return {key: each for name, batches in self._hidden.items() for key, each in by_window(name, batches).items()}


def hidden_states_bytes(model: StreamedModel, tokens: int, streams: int = 1) -> int:
    """How many bytes the hidden states of so many tokens take, in memory and in a state."""
    return streams * tokens * int(model.config.hidden_size) * model.dtype.itemsize


def next_block(state: State | None) -> int:
    """The first block that is still to be done."""
    return 0 if state is None else state.done
