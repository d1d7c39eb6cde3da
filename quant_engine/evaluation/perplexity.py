"""Perplexity of a streamed model: exp of the mean negative log-likelihood over every predicted token.

Windows are independent. The first token of each window is given, and so are the special tokens that begin a text; the
others are predicted. Shapes: B windows, T tokens, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from quant_engine.errors import NumericalInstability
from quant_engine.execution import IN_MEMORY, Execution
from quant_engine.models import HiddenStates, StreamedModel
from quant_engine.models.streaming import BlockPreparer, BlockReader
from quant_engine.windows import IGNORED, Windows

_BATCH_TOKENS: Final = 1024
PASS_TOKENS: Final = 65_536
"""How many tokens have their hidden states in memory together."""
_HEAD_TOKENS: Final = 256
"""How many positions go through the head together. Their logits have the width of the vocabulary."""
_TOTAL: Final = "total"


@dataclass(frozen=True)
class PerplexityResult:
    """``perplexity`` = exp(``mean_nll``), in nats, over ``predicted`` tokens."""

    perplexity: float
    mean_nll: float
    predicted: int


@torch.no_grad()
def perplexity(
    model: StreamedModel,
    windows: Sequence[Windows],
    *,
    read: BlockReader | None = None,
    prepare: BlockPreparer | None = None,
    on_block: Callable[[], None],
    execution: Execution = IN_MEMORY,
) -> PerplexityResult:
    """Measure the perplexity over ``windows`` (of one length each), streaming the blocks once per 65,536 tokens.

    Args:
        read, prepare: read a block's parameters, and change its layer; the dense model by default.
        on_block: called after every block of every pass (see :func:`passes`), also for each block of an earlier
            attempt.
        execution: stores the hidden states after each finished block of a pass, with the sum of the earlier passes,
            and continues from a stored state. With little memory the result is the same up to rounding.

    Raises:
        NumericalInstability: the mean is not finite.
        DiskFull: the disk filled up.
    """
    state = execution.latest()
    # ``pop``, so that only hidden states are left for ``HiddenStates``.
    done, total = (0, 0.0) if state is None else (state.done, float(state.tensors.pop(_TOTAL)))
    for _ in range(done):
        on_block()
    for number, group in enumerate(_grouped(windows)):
        # ``done`` counts blocks over all passes; passes that an earlier attempt finished are skipped.
        first = max(0, done - number * model.blocks)
        if first >= model.blocks:
            continue
        batches = [part for batch in group for part in batch.split(execution.together(len(batch)))]
        place = execution.place(model.device)
        ids = [batch.ids_ST for batch in batches]
        hidden_states = HiddenStates(model, ids, state=state if first else None, place=place)
        for index in range(first, model.blocks):
            _through_block(model, index, hidden_states, read, prepare)
            last = index + 1 == model.blocks
            if last:
                total = _sum(model, hidden_states, batches, total)
            # After the last block only the sum is needed; the next pass starts from its own windows.
            tensors = {} if last else hidden_states.tensors()
            tensors[_TOTAL] = torch.tensor(total, dtype=torch.float64)
            execution.keep(number * model.blocks + index + 1, tensors)
            on_block()
    predicted = sum(each.predicted for each in windows)
    mean = total / predicted
    if not math.isfinite(mean) or mean > 700.0:  # exp overflows a double from about 709 on
        raise NumericalInstability(
            detail=f"The model's mean negative log-likelihood is {mean}.",
            hint="Check the checkpoint's weights, or run it in float32 if its activations overflow.",
        )
    return PerplexityResult(perplexity=math.exp(mean), mean_nll=mean, predicted=predicted)


def passes(windows: Sequence[Windows]) -> int:
    """The number of times that :func:`perplexity` streams the blocks."""
    return len(_grouped(windows))


def _grouped(windows: Sequence[Windows]) -> list[list[Windows]]:
    """Batches of windows of equal length, in groups whose hidden states are in memory together."""
    # Windows of different lengths are in different batches, so no padding is needed.
    batches = [
        batch for same_length in windows for batch in same_length.split(max(1, _BATCH_TOKENS // same_length.length))
    ]
    groups: list[list[Windows]] = [[]]
    held = 0
    for batch in batches:
        if groups[-1] and held + batch.ids_ST.numel() > PASS_TOKENS:
            groups.append([])
            held = 0
        groups[-1].append(batch)
        held += batch.ids_ST.numel()
    return groups


def _through_block(
    model: StreamedModel,
    index: int,
    hidden_states: HiddenStates,
    read: BlockReader | None,
    prepare: BlockPreparer | None,
) -> None:
    with model.block(index, read, prepare) as block:
        for batch in range(len(hidden_states)):
            hidden_states.put(batch, block(hidden_states.hidden(batch), **hidden_states.arguments(index, batch)))


def _sum(model: StreamedModel, hidden_states: HiddenStates, batches: Sequence[Windows], total: float) -> float:
    """Add the negative log-likelihood of every batch to ``total``, in their order."""
    for batch, windows in enumerate(batches):
        total += _negative_log_likelihood(model, hidden_states.hidden(batch), windows.targets().to(model.device))
    return total


def _negative_log_likelihood(model: StreamedModel, hidden_BTD: Tensor, targets_BT: Tensor) -> float:
    """The sum over predicted tokens, with the head applied to a few positions at a time."""
    total = 0.0
    for hidden_TD, window_T in zip(hidden_BTD, targets_BT, strict=True):
        for first in range(0, len(window_T) - 1, _HEAD_TOKENS):
            targets_T = window_T[first + 1 : first + 1 + _HEAD_TOKENS]
            logits_TV = model.leave(hidden_TD[None, first : first + len(targets_T)])[0].float()
            loss = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="sum", ignore_index=IGNORED)
            total += float(loss)
    return total
