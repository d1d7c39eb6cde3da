"""All that configuration, headers, tokenizer files, text and policy decide about a job, before anything is computed.

The API calls it at submit for a local model. The worker calls it in the stage ``resolve``, before the weights of a Hub
model are downloaded. It reads no weights and imports no torch.
"""

from collections.abc import Callable, Iterator

from quant_engine.errors import EngineError
from quant_engine.interface.layout import ModelLayout, model_layout
from quant_engine.interface.pattern_check import check_patterns
from quant_engine.interface.problems import Problem
from quant_engine.interface.site_settings import site_problems
from quant_engine.interface.targets import linear_names
from quant_engine.model_files import ModelDescription, check_source
from quant_engine.model_files.unread import unread_problems
from quant_engine.policy import Calibration, Evaluation, Policy
from quant_engine.preflight.site_outlines import site_outlines
from quant_engine.preflight.tokenizer_files import tokenizer_problems

_MODEL = "/model/id"


def check_job(
    model: Callable[[], ModelDescription], *, policy: Policy, calibration: Calibration, evaluation: Evaluation
) -> list[Problem]:
    """Return every reason to refuse the job, those of the model first; an empty list where there is none.

    Args:
        model: describes the model's files; it may raise what a broken model raises.
        policy: fully resolved.
    """
    try:
        return list(_problems(model(), policy, calibration, evaluation))
    except EngineError as error:
        # What can not be read can not be checked any further.
        return [Problem.of(error, _MODEL)]


def _problems(
    model: ModelDescription, policy: Policy, calibration: Calibration, evaluation: Evaluation
) -> Iterator[Problem]:
    _ = calibration, evaluation
    quantization = check_source(model, weights_only=policy.task == "quantize")
    layout = model_layout(model.config)
    yield from (Problem.of(each, _MODEL) for each in unread_problems(model, layout, quantization.parts))
    yield from (Problem.of(each, _MODEL) for each in tokenizer_problems(model.files))
    if policy.task == "quantize":
        yield from _policy_problems(policy, layout)


def _policy_problems(policy: Policy, layout: ModelLayout) -> Iterator[Problem]:
    findings = check_patterns(policy, linear_names(layout.architecture, layout.layers), layout.architecture)
    # What a pattern means decides the settings, so these are not checked with patterns that mean nothing.
    if findings:
        for each in findings:
            yield Problem(pointer=each.pointer, code=each.code, detail=each.detail, hint="")
        return
    yield from site_problems(site_outlines(layout, policy), policy)
