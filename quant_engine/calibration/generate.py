"""Generate calibration text with the model itself, as data-free training does (LLM-QAT, arXiv 2305.17888).

The weights are assigned from the memory-mapped file in their stored type. So they are page cache, which the operating
system can drop, and not memory of this process. A key-value cache of one batch is needed in addition.

Shapes: S samples, T tokens, B batch.
"""

from typing import Final

import torch
from torch import Tensor

from quant_engine.models import StreamedModel, WeightSource

_BATCH_SAMPLES: Final = 64


@torch.no_grad()
def self_windows(source: WeightSource, *, samples: int, sequence_length: int, seed: int) -> Tensor:
    """Return token ids [S, T], sampled at temperature 1 from a random first token; the same for the same seed.

    Each batch has its own seed. The end-of-text token may occur; it does not end a sample.
    """
    model = StreamedModel(source, dtype=source.dtype)
    vocabulary = int(model.config.vocab_size)
    whole = model.whole()
    batches = []
    for first in range(0, samples, _BATCH_SAMPLES):
        # The factor is larger than any number of samples, so two seeds never share the seed of a batch.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        size = min(_BATCH_SAMPLES, samples - first)
        ids_BT = torch.randint(0, vocabulary, (size, 1), generator=generator)
        cache = None
        for _ in range(sequence_length - 1):
            # The cache holds the earlier tokens, so only the last one goes through the model.
            output = whole(ids_BT[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities_BV = output.logits[:, -1].float().softmax(dim=-1)
            ids_BT = torch.cat([ids_BT, torch.multinomial(probabilities_BV, 1, generator=generator)], dim=1)
        batches.append(ids_BT)
    return torch.cat(batches)
