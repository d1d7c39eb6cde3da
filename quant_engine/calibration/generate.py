"""The model writes its own calibration text, as data-free quantization-aware training does (LLM-QAT, arXiv 2305.17888).

The weights are assigned from the memory-mapped file in the type they are stored in, so what the operating system has to
hold is page cache that it can drop, not memory of this process; a key-value cache of one batch comes on top.

Shapes: S samples, T tokens, B batch.
"""

from typing import Final

import torch
from torch import Tensor

from quant_engine.models import StreamedModel, WeightSource

_BATCH_SAMPLES: Final = 64


@torch.no_grad()
def self_windows(source: WeightSource, *, samples: int, sequence_length: int, seed: int) -> Tensor:
    """[S, T] token ids, sampled at temperature 1 from a random first token; the same for the same seed.

    Each batch is seeded by itself. The end-of-text token may occur: it is text like any other here.
    """
    model = StreamedModel(source, dtype=source.dtype)
    vocabulary = int(model.config.vocab_size)
    whole = model.whole()
    batches = []
    for first in range(0, samples, _BATCH_SAMPLES):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        size = min(_BATCH_SAMPLES, samples - first)
        ids_BT = torch.randint(0, vocabulary, (size, 1), generator=generator)
        cache = None
        for _ in range(sequence_length - 1):
            output = whole(ids_BT[:, -1:], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities_BV = output.logits[:, -1].float().softmax(dim=-1)
            ids_BT = torch.cat([ids_BT, torch.multinomial(probabilities_BV, 1, generator=generator)], dim=1)
        batches.append(ids_BT)
    return torch.cat(batches)
