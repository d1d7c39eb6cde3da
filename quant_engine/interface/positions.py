"""Whether a model has positions for the windows of a request."""

from collections.abc import Mapping
from typing import Any, Final

from quant_engine.errors import UnsupportedPolicy
from quant_engine.interface.problems import Problem, refuse
from quant_engine.policy import Calibration, Evaluation

_LIMIT: Final = "max_position_embeddings"


def check_positions(config: Mapping[str, Any], calibration: Calibration | None, evaluation: Evaluation) -> None:
    """Check that no window is longer than the model's ``max_position_embeddings``.

    The limit is the same with a sliding window, and with scaled rotary positions, whose scaling it includes. A model
    that names none has none.

    Args:
        config: the content of ``config.json``.
        calibration: None where the run calibrates nothing.

    Raises:
        UnsupportedPolicy: a window is longer; the message has the limit.
    """
    refuse(position_problems(config, calibration, evaluation))


def position_problems(
    config: Mapping[str, Any], calibration: Calibration | None, evaluation: Evaluation
) -> list[Problem]:
    """Return a problem for each length that :func:`check_positions` refuses."""
    limit = position_limit(config)
    if limit is None:
        return []
    problems = []
    if calibration is not None and calibration.sequence_length > limit:
        problems.append(_too_long("calibration.sequence_length", calibration.sequence_length, limit))
    perplexity = evaluation.perplexity
    # A text shorter than a window is one window of its own length.
    if perplexity is not None and min(perplexity.sequence_length, perplexity.tokens) > limit:
        problems.append(_too_long("evaluation.perplexity.sequence_length", perplexity.sequence_length, limit))
    return problems


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a window may have, or None without a limit."""
    # A multimodal model has it in the configuration of its text part.
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        limit = part.get(_LIMIT)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return None


def _too_long(field: str, length: int, limit: int) -> Problem:
    return Problem(
        pointer="/" + field.replace(".", "/"),
        code=UnsupportedPolicy.code,
        detail=f"{field} is {length:,}; the model has positions for {limit:,} tokens ({_LIMIT}).",
        hint=f"Set {field} to at most {limit}.",
    )
