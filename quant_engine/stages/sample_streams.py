"""Send the calibration samples through the blocks of the original and of the quantized model, block by block.

GPTQ needs the second moments of each site's transformed input. GPTQ with a correction needs the moments of the input
that the quantized blocks before it produce from the same samples. Each stream has one hidden state per sample in
memory. After each block these states are also stored on disk, for an attempt that resumes the stage.

Shapes: S samples, B batch, T tokens, D hidden size, I channels of a site.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import torch
from torch import Tensor, nn

from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.models import HiddenStates, Site, StreamedModel, hidden_states_bytes, next_block
from quant_engine.resume_state import check_disk
from quant_engine.stages.context.run import Run
from quant_engine.training.quantized_linears import QuantizedSite, SwappedReaders
from quant_engine.transforms import SitePlan, transform_activation
from quant_engine.windows import Windows, token_rows

TOKEN_CAP: Final = 8.0
"""A token that is longer than this many median tokens counts as that long. Without the cap a few massive tokens would
dominate the Hessian."""

_BATCH_TOKENS: Final = 2048

ORIGINAL: Final = "original"
QUANTIZED: Final = "quantized"


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMoments:
    """X̂ᵀX̂ of the input that the rounding uses, and XᵀX̂ with the original input X; fp64 [I, I]."""

    hessian_II: Tensor
    cross_II: Tensor | None


class Streams:
    """The original stream, and optionally the quantized one, one block at a time.

    Args:
        windows: the samples. Padding goes through the blocks, but no moment counts it.
        quantized: whether to follow the quantized model too.
        batch_samples: how many samples go through a block at a time; None takes a default by the length of a sample.
        execution: stores both streams after each finished block, and continues from a stored state. With little
            memory, moments are still summed over the same number of samples. They have the same bits where a row of a
            smaller matrix product is rounded in the same way, which is not guaranteed.

    Raises:
        DiskFull: the states will not fit.
    """

    def __init__(
        self,
        model: StreamedModel,
        windows: Windows,
        *,
        quantized: bool,
        batch_samples: int | None = None,
        execution: Execution = IN_MEMORY,
    ) -> None:
        names = (ORIGINAL, QUANTIZED) if quantized else (ORIGINAL,)
        together = batch_samples or max(1, _BATCH_TOKENS // windows.length)
        batches = windows.split(execution.together(together))
        state = execution.latest()
        if execution.states is not None:
            needed = execution.more_bytes(hidden_states_bytes(model, windows.ids_ST.numel(), len(names)))
            check_disk(execution.states.directory, needed, "The hidden states of the samples")
        self.first = next_block(state)
        self.follows_quantized = quantized
        ids = [batch.ids_ST for batch in batches]
        self.hidden_states = HiddenStates(model, ids, names, state=state, place=execution.place(model.device))
        self._batches = batches
        self._execution = execution
        # How many batches are summed as one. Together they always hold the same number of samples, so that little
        # memory does not change the order of the sums.
        self._together = together // execution.together(together)

    def __len__(self) -> int:
        return len(self.hidden_states)

    def valid(self, batch: int) -> Tensor:
        """Whether each position of a batch [B, T] holds a token."""
        return self._batches[batch].valid_ST

    @property
    def together(self) -> list[range]:
        """The groups of batches whose moments are computed as one."""
        return [range(first, min(first + self._together, len(self))) for first in range(0, len(self), self._together)]

    def keep(self, done: int, *, last: bool) -> None:
        """Record that the first ``done`` blocks are finished, so that no later attempt repeats them.

        Args:
            last: whether no block follows.
        """
        # After the last block nothing reads the hidden states, so the state is stored without them.
        self._execution.keep(done, {} if last else self.hidden_states.tensors())


@contextmanager
def open_block(
    run: Run, streams: Streams, block: int, state: Mapping[str, Tensor] | None = None
) -> Iterator["OpenBlock"]:
    """Open a block with its original layer and, where it is followed, its quantized layer.

    Args:
        state: the parameters of the quantized layer, with fused diagonals; None takes the original ones.
    """
    with ExitStack() as stack:
        sites = [site for site in run.sites if site.block == block]
        prefix = run.model.architecture.block_prefix(block)
        original = stack.enter_context(run.model.block(block))
        readers = None
        if streams.follows_quantized:
            layer = stack.enter_context(run.model.block(block, None if state is None else lambda _: state))
            readers = stack.enter_context(SwappedReaders(layer, prefix, sites))
        yield OpenBlock(run, streams, block, original, readers, prefix)


class OpenBlock:
    """One block of both streams. The sites of the quantized layer are replaced one after the other."""

    def __init__(
        self,
        run: Run,
        streams: Streams,
        block: int,
        original: nn.Module,
        readers: SwappedReaders | None,
        prefix: str,
    ) -> None:
        self._run, self._streams, self._block = run, streams, block
        self._original, self._readers, self._prefix = original, readers, prefix
        self._state: dict[str, QuantizedSite] = {}

    def unrounded(self, sites: Mapping[str, QuantizedSite]) -> None:
        """Set what the quantized layer computes with for each site until :meth:`settle` replaces it."""
        self._state = dict(sites)
        self._use()

    def settle(self, site: Site, quantized: QuantizedSite) -> None:
        """Make the quantized layer compute this site as it will run."""
        self._state[site.name] = quantized
        self._use()

    @torch.no_grad()
    def moments(self, site: Site, plan: SitePlan, rounder: Callable[[Tensor], Tensor] | None) -> InputMoments:
        """Second moments of the site's transformed input over every sample, massive tokens capped.

        Args:
            rounder: maps X to Q(X A) as the site computes it at run time. With it the moments are those of the
                quantized stream, with the cross moments. None takes X A of the original stream.
        """
        hessian = torch.zeros(site.features, site.features, dtype=torch.float64, device=self._run.model.device)
        cross = None if rounder is None else torch.zeros_like(hessian)
        for batches in self._streams.together:
            original_TI = transform_activation(_rows(self._site_input(site, batch) for batch in batches), plan)
            factor_T1 = _cap(original_TI)
            original_TI = original_TI * factor_T1
            # Each product is computed in fp32 and only the sum over batches in fp64.
            if rounder is None or cross is None:
                hessian += (original_TI.mT @ original_TI).double()
                continue
            # The same factors as for the original, so that both moments weigh each token alike.
            quantized_TI = rounder(_rows(self._quantized_input(site, batch) for batch in batches)) * factor_T1
            hessian += (quantized_TI.mT @ quantized_TI).double()
            cross += (original_TI.mT @ quantized_TI).double()
        return InputMoments(hessian_II=hessian, cross_II=cross)

    @torch.no_grad()
    def original_output(self, batch: int) -> Tensor:
        """The output of the original block on a batch of the original stream."""
        stream = self._streams.hidden_states
        return _hidden(self._original(stream.hidden(batch, ORIGINAL), **stream.arguments(self._block, batch)))

    @torch.no_grad()
    def advance(self, originals: Sequence[Tensor] | None = None) -> None:
        """Send every sample through the block in both streams.

        Args:
            originals: the outputs of the original block for each batch, where they are known already.
        """
        hidden_states = self._streams.hidden_states
        for batch in range(len(hidden_states)):
            hidden_states.put(batch, self.original_output(batch) if originals is None else originals[batch], ORIGINAL)
            if self._readers is not None:
                arguments = hidden_states.arguments(self._block, batch)
                output_BTD = self._readers.forward(hidden_states.hidden(batch, QUANTIZED), arguments)
                hidden_states.put(batch, output_BTD, QUANTIZED)

    def _use(self) -> None:
        if self._readers is not None:
            self._readers.use(self._state)

    def _site_input(self, site: Site, batch: int) -> Tensor:
        # All readers get the same tensor, so the first one is enough. The hook stops the forward there: what follows
        # in the block is not needed.
        reader = self._original.get_submodule(site.all_readers[0].removeprefix(self._prefix))
        handle = reader.register_forward_pre_hook(lambda _module, arguments: _stop(arguments[0]))
        try:
            hidden_states = self._streams.hidden_states
            arguments = hidden_states.arguments(self._block, batch)
            forward = partial(self._original, hidden_states.hidden(batch, ORIGINAL), **arguments)
            return _reached(forward, self._streams.valid(batch))
        finally:
            handle.remove()

    def _quantized_input(self, site: Site, batch: int) -> Tensor:
        assert self._readers is not None  # noqa: S101  # a rounder needs the quantized stream
        # The rounder of the site receives its unrounded input and stops the forward with it.
        listening = QuantizedSite(rounder=_stop, weights=self._state[site.name].weights)
        self._readers.use({**self._state, site.name: listening})
        hidden_states = self._streams.hidden_states
        arguments = hidden_states.arguments(self._block, batch)
        try:
            forward = partial(self._readers.forward, hidden_states.hidden(batch, QUANTIZED), arguments)
            return _reached(forward, self._streams.valid(batch))
        finally:
            self._use()


class _Reached(Exception):  # control flow, not an error
    """Ends a forward early and carries the input of a site out of it."""

    def __init__(self, x_BTI: Tensor) -> None:
        super().__init__()
        self.x_BTI = x_BTI


def _stop(x_BTI: Tensor) -> NoReturn:
    raise _Reached(x_BTI)


def _reached(forward: Callable[[], object], valid_BT: Tensor) -> Tensor:
    """Run ``forward`` and return the input [T, I] of the site that stops it, without padding."""
    try:
        forward()
    except _Reached as reached:
        return token_rows(reached.x_BTI, valid_BT).float()
    raise AssertionError("the block does not reach the site")


def _rows(parts: Iterable[Tensor]) -> Tensor:
    """The concatenated rows of all parts; a single part is not copied."""
    first, *others = parts
    return torch.cat([first, *others]) if others else first


def _cap(x_TI: Tensor) -> Tensor:
    """The factor [T, 1] of each token that limits its norm to ``TOKEN_CAP`` median norms."""
    norm_T1: Tensor = torch.linalg.vector_norm(x_TI, dim=-1, keepdim=True)
    capped_T1: Tensor = TOKEN_CAP * norm_T1.median() / norm_T1.clamp(min=torch.finfo(norm_T1.dtype).tiny)
    return capped_T1.clamp_(max=1.0)


def _hidden(output: object) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)  # noqa: S101  # a decoder layer gives nothing else
    return hidden
