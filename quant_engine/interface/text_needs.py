"""What to ask for where a text has too few tokens. It loads no torch."""

from typing import Final

_FEWEST_SAMPLES: Final = 4
_SHORTEST: Final = 8
_FEWEST_TOKENS: Final = 32
"""The smallest values that a request may ask for (:mod:`quant_engine.policy.request`)."""


def calibration_remedy(tokens: int, sequence_length: int) -> str:
    """Return what helps where a calibration text of ``tokens`` tokens has too few windows of ``sequence_length``."""
    samples = tokens // sequence_length
    if samples >= _FEWEST_SAMPLES:
        return f"Ask for at most {samples:,} samples, for shorter sequences, or give more text."
    length = tokens // _FEWEST_SAMPLES
    if length >= _SHORTEST:
        return (
            f"Ask for {_FEWEST_SAMPLES} samples with a calibration.sequence_length of at most {length:,}, or give more "
            "text."
        )
    return f"Give more text: the smallest calibration has {_FEWEST_SAMPLES} samples of {_SHORTEST} tokens."


def evaluation_remedy(tokens: int) -> str:
    """Return what helps where an evaluation text has ``tokens`` tokens, which are fewer than asked for."""
    if tokens >= _FEWEST_TOKENS:
        return f"Set evaluation.perplexity.tokens to at most {tokens}, or give more text."
    return (
        f"Give more text: the smallest evaluation has {_FEWEST_TOKENS} tokens. Or set evaluation.perplexity to null to "
        "measure none."
    )
