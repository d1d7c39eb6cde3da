"""The calibration samples on their way through the blocks: as the original model has them, and as the quantized one.

GPTQ wants the second moments of each site's transformed input; a corrected one wants those of what the quantized blocks
before it make of the same samples. Both streams keep one hidden state per sample in memory, and nothing else; behind
each block it is kept on disk too, for an attempt that takes up the stage.

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
from quant_engine.training.readers import QuantizedSite, SwappedReaders
from quant_engine.transforms import SitePlan, transform_activation

TOKEN_CAP: Final = 8.0
"""Tokens longer than this many median tokens count as that long: a handful of massive ones would be the Hessian."""

_BATCH_TOKENS: Final = 2048

ORIGINAL: Final = "original"
QUANTIZED: Final = "quantized"


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMoments:
    """X̂ᵀX̂ of a site's input as the rounding sees it, and XᵀX̂ with the original's; fp64 [I, I]."""

    hessian_II: Tensor
    cross_II: Tensor | None


class Streams:
    """The two streams, one block at a time.

    Args:
        windows_ST: token ids.
        quantized: whether to follow the quantized model too.
        batch_samples: how many samples go through a block at a time; as many as are good for it where None.
        execution: keeps both streams after each finished block; where it has some, they go on from there. With little
            memory, moments are still summed over as many samples together, so they are the same wherever a row of a
            smaller product rounds the same; that is not promised.

    Raises:
        DiskFull: the states will not fit.
    """

    def __init__(
        self,
        model: StreamedModel,
        windows_ST: Tensor,
        *,
        quantized: bool,
        batch_samples: int | None = None,
        execution: Execution = IN_MEMORY,
    ) -> None:
        names = (ORIGINAL, QUANTIZED) if quantized else (ORIGINAL,)
        together = batch_samples or max(1, _BATCH_TOKENS // windows_ST.shape[1])
        batches = torch.split(windows_ST, execution.together(together))
        state = execution.latest()
        if execution.states is not None:
            needed = execution.more_bytes(hidden_states_bytes(model, windows_ST.numel(), len(names)))
            check_disk(execution.states.directory, needed, "The hidden states of the samples")
        self.first = next_block(state)
        self.follows_quantized = quantized
        self.hidden_states = HiddenStates(model, batches, names, state=state, place=execution.place(model.device))
        self._execution = execution
        # Batches whose moments are summed as one: together they hold as many samples, however large each batch is.
        self._together = together // execution.together(together)

    def __len__(self) -> int:
        return len(self.hidden_states)

    @property
    def together(self) -> list[range]:
        """The batches whose moments are taken as one."""
        return [range(first, min(first + self._together, len(self))) for first in range(0, len(self), self._together)]

    def keep(self, done: int, *, last: bool) -> None:
        """The first ``done`` blocks are finished, and ``last`` if none follows: let no later attempt do them again."""
        self._execution.keep(done, {} if last else self.hidden_states.tensors())


@contextmanager
def open_block(
    run: Run, streams: Streams, block: int, state: Mapping[str, Tensor] | None = None
) -> Iterator["OpenBlock"]:
    """A block with its two layers at hand.

    Args:
        state: the parameters of the quantized layer, its diagonals fused; the original ones where None.
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
    """One block of both streams. The quantized one's sites are replaced as they are settled."""

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
        """What the quantized layer computes with until a site is settled."""
        self._state = dict(sites)
        self._use()

    def settle(self, site: Site, quantized: QuantizedSite) -> None:
        """From now on the quantized layer has this site as it will run."""
        self._state[site.name] = quantized
        self._use()

    @torch.no_grad()
    def moments(self, site: Site, plan: SitePlan, rounder: Callable[[Tensor], Tensor] | None) -> InputMoments:
        """Second moments of the site's transformed input over every sample, massive tokens capped.

        Args:
            rounder: X to Q(X A) of the site at run time: moments of the quantized stream, with the cross moments; None
                takes X A of the original.
        """
        hessian = torch.zeros(site.features, site.features, dtype=torch.float64, device=self._run.model.device)
        cross = None if rounder is None else torch.zeros_like(hessian)
        for batches in self._streams.together:
            original_TI = transform_activation(_rows(self._site_input(site, batch) for batch in batches), plan)
            factor_T1 = _cap(original_TI)
            original_TI = original_TI * factor_T1
            if rounder is None or cross is None:
                hessian += (original_TI.mT @ original_TI).double()
                continue
            quantized_TI = rounder(_rows(self._quantized_input(site, batch) for batch in batches)) * factor_T1
            hessian += (quantized_TI.mT @ quantized_TI).double()
            cross += (original_TI.mT @ quantized_TI).double()
        return InputMoments(hessian_II=hessian, cross_II=cross)

    @torch.no_grad()
    def original_output(self, batch: int) -> Tensor:
        """What the original block makes of a batch of the original stream."""
        stream = self._streams.hidden_states
        return _hidden(self._original(stream.hidden(batch, ORIGINAL), **stream.arguments(self._block, batch)))

    @torch.no_grad()
    def advance(self, originals: Sequence[Tensor] | None = None) -> None:
        """Send every sample through the block, in both streams; ``originals`` are its outputs where they are known."""
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
        reader = self._original.get_submodule(site.all_readers[0].removeprefix(self._prefix))
        handle = reader.register_forward_pre_hook(lambda _module, arguments: _stop(arguments[0]))
        try:
            hidden_states = self._streams.hidden_states
            arguments = hidden_states.arguments(self._block, batch)
            return _reached(partial(self._original, hidden_states.hidden(batch, ORIGINAL), **arguments))
        finally:
            handle.remove()

    def _quantized_input(self, site: Site, batch: int) -> Tensor:
        assert self._readers is not None  # noqa: S101  # a rounder needs the quantized stream
        listening = QuantizedSite(rounder=_stop, weights=self._state[site.name].weights)
        self._readers.use({**self._state, site.name: listening})
        hidden_states = self._streams.hidden_states
        arguments = hidden_states.arguments(self._block, batch)
        try:
            return _reached(partial(self._readers.forward, hidden_states.hidden(batch, QUANTIZED), arguments))
        finally:
            self._use()


class _Reached(Exception):  # no error: the forward has come as far as it has to
    """Carries a site's input out of a forward that is not needed any further."""

    def __init__(self, x_BTI: Tensor) -> None:
        super().__init__()
        self.x_BTI = x_BTI


def _stop(x_BTI: Tensor) -> NoReturn:
    raise _Reached(x_BTI)


def _reached(forward: Callable[[], object]) -> Tensor:
    """The input [T, I] of the site that stops ``forward``."""
    try:
        forward()
    except _Reached as reached:
        return reached.x_BTI.flatten(0, -2).float()
    raise AssertionError("the block does not reach the site")


def _rows(parts: Iterable[Tensor]) -> Tensor:
    """The rows of every part; the part itself where there is one."""
    first, *others = parts
    return torch.cat([first, *others]) if others else first


def _cap(x_TI: Tensor) -> Tensor:
    norm_T1: Tensor = torch.linalg.vector_norm(x_TI, dim=-1, keepdim=True)
    capped_T1: Tensor = TOKEN_CAP * norm_T1.median() / norm_T1.clamp(min=torch.finfo(norm_T1.dtype).tiny)
    return capped_T1.clamp_(max=1.0)


def _hidden(output: object) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)  # noqa: S101  # a decoder layer gives nothing else
    return hidden
