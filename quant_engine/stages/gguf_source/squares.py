"""Sum the squares of every linear's input in one block, on the samples that fit and choose.

Shapes: B windows of a batch, T tokens, D features of a site.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from quant_engine.models import HiddenStates, Site, StreamedModel
from quant_engine.windows import token_rows


@torch.no_grad()
def summed_squares(
    model: StreamedModel,
    block: int,
    state: Mapping[str, Tensor],
    sites: Sequence[Site],
    hidden: HiddenStates,
    valid: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Send ``hidden`` through the block, and return Σ x² of each site's input [D] in fp64, by the site's name.

    Args:
        state: the block's parameters.
        sites: those of the block.
        valid: which positions [B, T] of each batch hold a token.
    """
    sums = {site.name: torch.zeros(site.features, dtype=torch.float64, device=model.device) for site in sites}
    with model.block(block, lambda _: state) as layer:
        for batch, valid_BT in enumerate(valid):
            with _adding(layer, model.architecture.block_prefix(block), sites, sums, valid_BT):
                hidden.put(batch, layer(hidden.hidden(batch), **hidden.arguments(block, batch)))
    return {name: sums_D.cpu() for name, sums_D in sums.items()}


@contextmanager
def _adding(
    layer: nn.Module, prefix: str, sites: Sequence[Site], sums: Mapping[str, Tensor], valid_BT: Tensor
) -> Iterator[None]:
    """Add the squares of each site's input to its sum while the ``with`` lasts."""
    with ExitStack() as stack:
        for site in sites:
            # All readers of a site have the same input, so a hook on the first of them is enough.
            reader = layer.get_submodule(site.all_readers[0].removeprefix(prefix))

            def add(_: nn.Module, arguments: tuple[Tensor, ...], sum_D: Tensor = sums[site.name]) -> None:
                sum_D.add_(token_rows(arguments[0], valid_BT).double().square().sum(dim=0))

            stack.callback(reader.register_forward_pre_hook(add).remove)
        yield
