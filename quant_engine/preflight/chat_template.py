"""Whether messages in a request meet a model that can render them, told from the tokenizer's files."""

from collections.abc import Iterator
from typing import Final

from quant_engine.errors import EngineError, NoChatTemplate
from quant_engine.interface.problems import Problem
from quant_engine.model_files import ModelFiles
from quant_engine.policy import Calibration, Evaluation, InlineMessages, Policy

# Each holds a template, or is a tokenizer that renders messages without one.
_TEMPLATES: Final = frozenset({"chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json"})
_CONFIG: Final = "tokenizer_config.json"


def chat_template_problems(
    files: ModelFiles, policy: Policy, calibration: Calibration, evaluation: Evaluation
) -> Iterator[Problem]:
    """Yield a problem for each use of inline messages, where the model has no chat template.

    The rows of a data set are read later, so whether they are messages is not known yet.
    """
    perplexity = evaluation.perplexity
    pointers = []
    # A job that only measures a model does not calibrate.
    if policy.task == "quantize" and isinstance(calibration.dataset, InlineMessages):
        pointers.append("/calibration/dataset")
    if perplexity is not None and isinstance(perplexity.dataset, InlineMessages):
        pointers.append("/evaluation/perplexity/dataset")
    if pointers and not _has_template(files):
        yield from (Problem.of(NoChatTemplate.of_model(), pointer) for pointer in pointers)


def _has_template(files: ModelFiles) -> bool:
    if not _TEMPLATES.isdisjoint(files.names()):
        return True
    try:
        return bool(files.read_json(_CONFIG).get("chat_template"))
    except EngineError:
        return False  # it is missing; a broken one is another problem
