"""The calibration samples on their way through the blocks: as the original model has them, and as the quantized one.

GPTQ wants the second moments of each site's transformed input; a corrected one wants those of what the quantized blocks
before it make of the same samples. Both streams keep one hidden state per sample in memory, and nothing else.

Shapes: S samples, B batch, T tokens, D hidden size, I channels of a site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from quant_engine.models import Site, StreamedModel
from quant_engine.stages.context import Run
from quant_engine.training.readers import QuantizedSite, SwappedReaders
from quant_engine.transforms import SitePlan, transform_activation

TOKEN_CAP: Final = 8.0
"""Tokens longer than this many median tokens count as that long: a handful of massive ones would be the Hessian."""

_BATCH_TOKENS: Final = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """X̂ᵀX̂ of a site's input as the rounding sees it, and XᵀX̂ with the original's; fp64 [I, I]."""

    hessian_II: Tensor
    cross_II: Tensor | None


class Streams:
    """The two streams, one block at a time.

    Args:
        windows_ST: token ids.
        quantized: whether to follow the quantized model too.
        batch_samples: how many samples go through a block at a time; as many as are good for it where None.
    """

    def __init__(
        self, model: StreamedModel, windows_ST: Tensor, *, quantized: bool, batch_samples: int | None = None
    ) -> None:
        batches = torch.split(windows_ST, batch_samples or max(1, _BATCH_TOKENS // windows_ST.shape[1]))
        self._entered = [model.enter(batch) for batch in batches]
        self.original = [each.hidden_BTD for each in self._entered]
        self.quantized = [each.hidden_BTD for each in self._entered] if quantized else None

    def __len__(self) -> int:
        return len(self._entered)

    def arguments(self, block: int, batch: int) -> dict[str, Any]:
        """What the block's layer is called with beside the hidden states."""
        return self._entered[batch].layer_arguments[block]


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
        if streams.quantized is not None:
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
    def moments(self, site: Site, plan: SitePlan, rounder: Callable[[Tensor], Tensor] | None) -> Moments:
        """Second moments of the site's transformed input over every sample, massive tokens capped.

        Args:
            rounder: X to Q(X A) of the site at run time: moments of the quantized stream, with the cross moments; None
                takes X A of the original.
        """
        hessian = torch.zeros(site.features, site.features, dtype=torch.float64, device=self._run.model.device)
        cross = None if rounder is None else torch.zeros_like(hessian)
        for batch in range(len(self._streams)):
            original_TI = transform_activation(self._site_input(site, batch), plan)
            factor_T1 = _cap(original_TI)
            original_TI = original_TI * factor_T1
            if rounder is None or cross is None:
                hessian += (original_TI.mT @ original_TI).double()
                continue
            quantized_TI = rounder(self._quantized_input(site, batch)) * factor_T1
            hessian += (quantized_TI.mT @ quantized_TI).double()
            cross += (original_TI.mT @ quantized_TI).double()
        return Moments(hessian_II=hessian, cross_II=cross)

    @torch.no_grad()
    def original_outputs(self) -> list[Tensor]:
        """What the original block makes of the original stream, batch by batch."""
        streams, block = self._streams, self._block
        return [
            _hidden(self._original(hidden_BTD, **streams.arguments(block, batch)))
            for batch, hidden_BTD in enumerate(streams.original)
        ]

    @torch.no_grad()
    def advance(self, originals: list[Tensor] | None = None) -> None:
        """Send every sample through the block, in both streams; ``originals`` are its outputs where they are known."""
        streams = self._streams
        streams.original = self.original_outputs() if originals is None else originals
        if streams.quantized is not None and self._readers is not None:
            for batch, hidden_BTD in enumerate(streams.quantized):
                arguments = streams.arguments(self._block, batch)
                streams.quantized[batch] = self._readers.forward(hidden_BTD, arguments)

    def _use(self) -> None:
        if self._readers is not None:
            self._readers.use(self._state)

    def _site_input(self, site: Site, batch: int) -> Tensor:
        reader = self._original.get_submodule(site.all_readers[0].removeprefix(self._prefix))
        handle = reader.register_forward_pre_hook(lambda _module, arguments: _stop(arguments[0]))
        try:
            return _reached(
                partial(self._original, self._streams.original[batch], **self._streams.arguments(self._block, batch))
            )
        finally:
            handle.remove()

    def _quantized_input(self, site: Site, batch: int) -> Tensor:
        assert self._readers is not None and self._streams.quantized is not None  # noqa: S101, PT018  # a rounder needs both
        listening = QuantizedSite(rounder=_stop, weights=self._state[site.name].weights)
        self._readers.use({**self._state, site.name: listening})
        arguments = self._streams.arguments(self._block, batch)
        try:
            return _reached(partial(self._readers.forward, self._streams.quantized[batch], arguments))
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


def _cap(x_TI: Tensor) -> Tensor:
    norm_T1: Tensor = torch.linalg.vector_norm(x_TI, dim=-1, keepdim=True)
    capped_T1: Tensor = TOKEN_CAP * norm_T1.median() / norm_T1.clamp(min=torch.finfo(norm_T1.dtype).tiny)
    return capped_T1.clamp_(max=1.0)


def _hidden(output: object) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)  # noqa: S101  # a decoder layer gives nothing else
    return hidden
