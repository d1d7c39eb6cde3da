"""Perplexity of a streamed model: exp of the mean negative log-likelihood over every predicted token.

Windows are independent: the first token of each is given, the others are predicted, so a window of T tokens counts
T − 1. Shapes: B windows, T tokens, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.models import StreamedModel
from quant_engine.models.streaming import BlockPreparer, BlockReader, Entered

_BATCH_TOKENS: Final = 1024
PASS_TOKENS: Final = 65_536
"""Hidden states of so many tokens are held together."""
_HEAD_TOKENS: Final = 256


@dataclass(frozen=True)
class PerplexityResult:
    """``perplexity`` = exp(``mean_nll``), in nats, over ``predicted`` tokens."""

    perplexity: float
    mean_nll: float
    predicted: int


@torch.no_grad()
def perplexity(
    model: StreamedModel,
    windows: list[Tensor],
    *,
    read: BlockReader | None = None,
    prepare: BlockPreparer | None = None,
    on_block: Callable[[], None],
) -> PerplexityResult:
    """Perplexity over ``windows`` ([B, T] token ids each), streaming the blocks once for every 65,536 tokens.

    Args:
        read, prepare: where blocks come from and what they compute with; the dense model by default.
        on_block: called after every block of every pass; see :func:`passes`.

    Raises:
        NumericalInstability: the mean is not finite.
    """
    total, predicted = 0.0, 0
    for group in _grouped(windows):
        entered = [model.enter(batch) for batch in group]
        hidden = [batch.hidden_BTD for batch in entered]
        for index in range(model.blocks):
            _through_block(model, index, entered, hidden, read, prepare)
            on_block()
        for ids_BT, hidden_BTD in zip(group, hidden, strict=True):
            total += _negative_log_likelihood(model, hidden_BTD, ids_BT.to(model.device))
            predicted += ids_BT[:, 1:].numel()
    mean = total / predicted
    if not math.isfinite(mean) or mean > 700.0:
        raise NumericalInstability(
            detail=f"The model's mean negative log-likelihood is {mean}.",
            hint="Check the checkpoint's weights, or run it in float32 if its activations overflow.",
        )
    return PerplexityResult(perplexity=math.exp(mean), mean_nll=mean, predicted=predicted)


def passes(windows: list[Tensor]) -> int:
    """How many times :func:`perplexity` streams the blocks."""
    return len(_grouped(windows))


def _grouped(windows: list[Tensor]) -> list[list[Tensor]]:
    """Batches of equally long windows, in groups whose hidden states are held together."""
    batches = [
        batch for same_length in windows for batch in same_length.split(max(1, _BATCH_TOKENS // same_length.shape[1]))
    ]
    groups: list[list[Tensor]] = [[]]
    held = 0
    for batch in batches:
        if groups[-1] and held + batch.numel() > PASS_TOKENS:
            groups.append([])
            held = 0
        groups[-1].append(batch)
        held += batch.numel()
    return groups


def _through_block(
    model: StreamedModel,
    index: int,
    entered: list[Entered],
    hidden: list[Tensor],
    read: BlockReader | None,
    prepare: BlockPreparer | None,
) -> None:
    with model.block(index, read, prepare) as block:
        for position, batch in enumerate(entered):
            hidden[position] = block(hidden[position], **batch.layer_arguments[index])


def _negative_log_likelihood(model: StreamedModel, hidden_BTD: Tensor, ids_BT: Tensor) -> float:
    """The sum over predicted tokens, the head applied to a few positions at a time."""
    total = 0.0
    for hidden_TD, ids_T in zip(hidden_BTD, ids_BT, strict=True):
        for first in range(0, len(ids_T) - 1, _HEAD_TOKENS):
            targets_T = ids_T[first + 1 : first + 1 + _HEAD_TOKENS]
            logits_TV = model.leave(hidden_TD[None, first : first + len(targets_T)])[0].float()
            total += float(torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="sum"))
    return total
