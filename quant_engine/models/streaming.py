"""Run a causal language model block by block: a block is read, used on every batch, and released.

The decoder layers, rotary embedding and masks are those of transformers, so a streamed forward equals that of the whole
model bit for bit. The arguments of each layer are recorded from the model's own forward, in which recorders replace the
layers.

Shapes: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant_engine.errors import InvalidModel
from quant_engine.interface.architectures import Architecture, architecture_of
from quant_engine.models.configuration import empty_model, model_configuration
from quant_engine.models.weight_source import WeightSource

BlockReader = Callable[[int], Mapping[str, Tensor]]
"""Returns the parameters of the block with this index, named as in the whole model."""


BlockPreparer = Callable[[nn.Module, int], None]
"""Changes a block (adds hooks, quantization) before its parameters are assigned, while they have no memory."""


@dataclass(frozen=True)
class Entered:
    """A batch before the first block: its hidden states, and the other arguments of each layer."""

    hidden_BTD: Tensor
    layer_arguments: list[dict[str, Any]]


class _Recorder(nn.Module):
    """A replacement of a decoder layer that returns the hidden states unchanged and records the other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden_states


class StreamedModel:
    """A model of which only the embedding, the final norm and the head stay in memory.

    Args:
        source: the checkpoint, or a view of one.
        dtype: the type to compute in.
        device: where to compute.

    Raises:
        UnsupportedArchitecture, InvalidModel, ModelNotFound: see :class:`CheckpointSource`.
    """

    def __init__(
        self, source: WeightSource, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.source = source
        self.architecture: Architecture = architecture_of(source.config)
        self.dtype = dtype
        self.device = torch.device(device)
        self.config = model_configuration(source.config)
        model = empty_model(self.config, dtype)
        # The real layers are built one at a time; the model's own forward meets recorders in their place.
        self._layer_class = type(model.model.layers[0])
        self._model_config = model.config
        model.model.layers = nn.ModuleList(_Recorder() for _ in range(self.blocks))
        source.attach(model, prefix="", device=self.device)
        self._skeleton: PreTrainedModel = model.eval().requires_grad_(False)
        self._ends_loaded = False

    @property
    def blocks(self) -> int:
        """The number of decoder blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def ties_embeddings(self) -> bool:
        """Whether the head is the embedding matrix."""
        return bool(self.config.tie_word_embeddings)

    @cached_property
    def end_names(self) -> tuple[str, ...]:
        """The stored parameters outside the blocks: embedding, final norm, and the head where it is untied."""
        names = [f"{self.architecture.embedding}.weight", f"{self.architecture.final_norm}.weight"]
        if not self.ties_embeddings:
            names.append(f"{self.architecture.head}.weight")
        return tuple(names)

    def block_names(self, index: int) -> tuple[str, ...]:
        """Return the names of a block's parameters, as the model class defines them."""
        prefix = self.architecture.block_prefix(index)
        return tuple(prefix + name for name in self.empty_block(index).state_dict())

    def read_block(self, index: int) -> dict[str, Tensor]:
        """Return a block's dense parameters by their full names."""
        return self.source.read(self.block_names(index), dtype=self.dtype, device=self.device)

    def empty_block(self, index: int) -> nn.Module:
        """Return a decoder layer whose parameters have no memory."""
        with torch.device("meta"):
            layer: nn.Module = self._layer_class(self._model_config, index)
        return layer.eval().requires_grad_(False)

    @contextmanager
    def block(
        self, index: int, read: BlockReader | None = None, prepare: BlockPreparer | None = None
    ) -> Iterator[nn.Module]:
        """Yield a decoder layer with its parameters, which are released at the end of the ``with``.

        Args:
            index: which block.
            read: returns its parameters; by default the source does, and attaches what its linears compute.
            prepare: changes the empty layer before the parameters are assigned.

        Raises:
            InvalidModel: the tensors do not fit the configuration.
        """
        layer = self.empty_block(index)
        prefix = self.architecture.block_prefix(index)
        if read is None:
            self.source.attach(layer, prefix=prefix, device=self.device)
        if prepare is not None:
            prepare(layer, index)
        state = {name.removeprefix(prefix): value for name, value in (read or self.read_block)(index).items()}
        try:
            # Assigned and not copied, so that memory-mapped tensors stay mapped.
            layer.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise InvalidModel(
                detail=f"The tensors of block {index} do not fit the model's configuration.",
                hint="Check that config.json belongs to these weights.",
            ) from error
        layer.requires_grad_(False)
        try:
            yield layer
        finally:
            layer.to("meta")  # releases the parameters even where a caller still holds the layer

    @torch.no_grad()
    def enter(self, input_ids_BT: Tensor) -> Entered:
        """Embed a batch, and record the arguments of every layer (rotary positions, masks) for its shape."""
        self._load_ends()
        recorders = list(self._skeleton.model.layers)
        # The first layer's input is the embedding with all that the model class does to it (Gemma scales it).
        embedded: list[Tensor] = []
        handle = recorders[0].register_forward_pre_hook(lambda _module, arguments: embedded.append(arguments[0]))
        try:
            self._skeleton.model(input_ids_BT.to(self.device), use_cache=False)
        finally:
            handle.remove()
        arguments = [recorder.arguments for recorder in recorders]
        return Entered(embedded[0], arguments)

    @torch.no_grad()
    def leave(self, hidden_BTD: Tensor) -> Tensor:
        """Return the logits [B, T, V] of the last block's output, through the model's own norm, head and soft cap."""
        self._load_ends()
        # The recorders return their input, so the model's forward applies only its end.
        logits_BTV: Tensor = self._skeleton(inputs_embeds=hidden_BTD, use_cache=False).logits
        return logits_BTV

    def whole(self) -> PreTrainedModel:
        """Return the whole model over the memory-mapped weights, for sampling; without a cast nothing is copied."""
        model = empty_model(self.config, self.dtype)
        self.source.attach(model, prefix="", device=self.device)
        state = self.source.read(self.source.tensors, dtype=self.dtype, device=self.device)
        if self.ties_embeddings:
            state[f"{self.architecture.head}.weight"] = state[f"{self.architecture.embedding}.weight"]
        # Before the parameters are assigned, because transformers initializes them along with the buffers.
        _materialize_buffers(model, self.device)
        model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
        whole: PreTrainedModel = model.eval().requires_grad_(False)
        return whole

    def _load_ends(self) -> None:
        if self._ends_loaded:
            return
        ends = self.source.read(self.end_names, dtype=self.dtype, device=self.device)
        if self.ties_embeddings:
            ends[f"{self.architecture.head}.weight"] = ends[f"{self.architecture.embedding}.weight"]
        _materialize_buffers(self._skeleton, self.device)
        try:
            self._skeleton.load_state_dict(ends, assign=True)
        except RuntimeError as error:
            raise InvalidModel(
                detail="The embedding, the final norm or the head do not fit the model's configuration.",
                hint="Check that config.json belongs to these weights.",
            ) from error
        self._skeleton.requires_grad_(False)
        self._ends_loaded = True


def _materialize_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Give memory and values to the buffers that no checkpoint stores (rotary frequencies, Gemma's embedding scale).

    The values are those of ``from_pretrained``. Call this while the parameters still have no memory, because
    transformers initializes them along with the buffers.
    """
    for module in model.modules():
        empty = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in empty.items():
            setattr(module, name, torch.empty_like(buffer, device=device))
        if empty:
            model._init_weights(module)  # noqa: SLF001  # the method in which every model class defines these values
