"""Cut text into windows of tokens: a seeded sample for calibration, the first tokens in order for evaluation.

Shapes: S samples, T tokens of a window.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from quant_engine.errors import ModelNotFound, NotEnoughText


def load_tokenizer(directory: Path) -> Any:
    """Load the checkpoint's tokenizer; remote code is never run.

    Raises:
        ModelNotFound: there is no usable tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelNotFound(
            detail=f"The model directory {directory.name!r} has no usable tokenizer ({type(error).__name__}).",
            hint="It has to hold tokenizer.json and tokenizer_config.json, as save_pretrained writes them.",
        ) from error


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """Return the token ids [tokens] of a text, int64, without special tokens."""
    # verbose=False: the text is longer than a model's context, and the warning about it does not apply here.
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def calibration_windows(ids: Tensor, *, samples: int, sequence_length: int, seed: int) -> Tensor:
    """Return ``samples`` disjoint windows [S, T], drawn and ordered at random by ``seed``.

    Raises:
        NotEnoughText: the text has fewer than ``samples`` windows.
    """
    available = len(ids) // sequence_length
    if available < samples:
        raise NotEnoughText(
            detail=f"Calibration asks for {samples} × {sequence_length} = {samples * sequence_length:,} tokens; "
            f"the text has {len(ids):,}.",
            hint=f"Ask for at most {available} samples, for shorter sequences, or give more text.",
        )
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:samples]
    return ids[: available * sequence_length].reshape(available, sequence_length)[order]


def evaluation_windows(ids: Tensor, *, tokens: int, sequence_length: int) -> list[Tensor]:
    """Return the first ``tokens`` tokens as windows [S, T] in order; two or more remaining tokens are another window.

    Raises:
        NotEnoughText: the text is shorter than ``tokens``.
    """
    if len(ids) < tokens:
        raise NotEnoughText(
            detail=f"Perplexity asks for {tokens:,} tokens; the evaluation text has {len(ids):,}.",
            hint=f"Set evaluation.perplexity.tokens to at most {len(ids)}, or give more text.",
        )
    whole = tokens // sequence_length
    windows = [ids[: whole * sequence_length].reshape(whole, sequence_length)] if whole else []
    rest = ids[whole * sequence_length : tokens]
    # A single token predicts nothing, so it is dropped.
    return windows + ([rest[None]] if len(rest) > 1 else [])
