"""What to ask for where a text has too few tokens. It loads no torch."""

from typing import Final

from quant_engine.errors import UnsupportedPolicy

FEWEST_SAMPLES: Final = 4
_SHORTEST: Final = 8
_FEWEST_TOKENS: Final = 32
"""The smallest values that a request may ask for (:mod:`quant_engine.policy.request`), so that no remedy names less."""


def no_room(lead: int, sequence_length: int) -> UnsupportedPolicy:
    """Return the refusal of windows that hold nothing but the ``lead`` special tokens that begin them."""
    return UnsupportedPolicy(
        detail=f"The tokenizer begins a text with {lead} special tokens; a window has {sequence_length} tokens.",
        hint="Use a longer sequence_length, or special_tokens 'none'.",
    )


def calibration_remedy(available: int, tokens: int, samples: int, sequence_length: int) -> str:
    """Return what helps where a calibration text has too few windows.

    Args:
        available: the windows that it has; tokens: its tokens.
        samples, sequence_length: what was asked for.
    """
    if available >= FEWEST_SAMPLES:
        return f"Ask for at most {available:,} samples, for shorter sequences, or give more text."
    for count in (samples, FEWEST_SAMPLES):
        if tokens // count >= _SHORTEST:
            return (
                f"Ask for {count:,} samples with a calibration.sequence_length of at most {tokens // count:,}, or give "
                "more text."
            )
    return f"Give a text of at least {samples * sequence_length:,} tokens."


def documents_remedy(available: int) -> str:
    """Return what helps where each window is one document, and a data set has ``available`` of them, too few."""
    fewer = (
        f"Ask for at most {available:,} samples, give more documents" if available >= FEWEST_SAMPLES else "Give more"
    )
    return f"{fewer}, or set calibration.pack to true, which joins documents and cuts them."


def evaluation_remedy(available: int, tokens: int) -> str:
    """Return what helps where an evaluation text has ``available`` tokens, which are fewer than ``tokens``."""
    if available >= _FEWEST_TOKENS:
        return f"Set evaluation.perplexity.tokens to at most {available}, or give more text."
    return f"Give a text of at least {tokens:,} tokens, or set evaluation.perplexity to null to measure none."
