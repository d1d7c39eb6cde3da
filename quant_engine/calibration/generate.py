"""Generate calibration text with the model itself, as data-free training does (LLM-QAT, arXiv 2305.17888).

The weights are assigned from the memory-mapped file in their stored type. So they are page cache, which the operating
system can drop, and not memory of this process. A key-value cache of one batch is needed in addition.

Shapes: S samples, T tokens, B batch.
"""

from typing import Final

import torch
from torch import Tensor

from quant_engine.calibration.cutting import check_room
from quant_engine.calibration.tokens import NO_BEGINNING, Beginning
from quant_engine.models import StreamedModel, WeightSource
from quant_engine.windows import Windows

_BATCH_SAMPLES: Final = 64


@torch.no_grad()
def self_windows(
    source: WeightSource, *, samples: int, sequence_length: int, seed: int, beginning: Beginning = NO_BEGINNING
) -> Windows:
    """Return windows [S, T] that the model samples at temperature 1; the same for the same seed.

    They begin with the special tokens of ``beginning``, or with a random token where there are none. Each batch has
    its own seed. The end-of-text token may occur; it does not end a sample.

    Raises:
        UnsupportedPolicy: the special tokens leave no room in a window.
    """
    check_room(len(beginning.ids), sequence_length)
    model = StreamedModel(source, dtype=source.dtype)
    vocabulary = int(model.config.vocab_size)
    whole = model.whole()
    batches = []
    for first in range(0, samples, _BATCH_SAMPLES):
        # The factor is larger than any number of samples, so two seeds never share the seed of a batch.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        size = min(_BATCH_SAMPLES, samples - first)
        ids_BT = _first_tokens(beginning, size, vocabulary, generator)
        cache, unseen_BT = None, ids_BT
        while ids_BT.shape[1] < sequence_length:
            # The cache holds the earlier tokens, so only those behind them go through the model.
            output = whole(unseen_BT, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities_BV = output.logits[:, -1].float().softmax(dim=-1)
            unseen_BT = torch.multinomial(probabilities_BV, 1, generator=generator)
            ids_BT = torch.cat([ids_BT, unseen_BT], dim=1)
        batches.append(ids_BT)
    given = max(1, len(beginning.ids))
    return Windows.plain(torch.cat(batches), given=given, special_tokens=beginning.tokens)


def _first_tokens(beginning: Beginning, size: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    if beginning.ids:
        return torch.tensor(beginning.ids, dtype=torch.int64).expand(size, -1)
    return torch.randint(0, vocabulary, (size, 1), generator=generator)
